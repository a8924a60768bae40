// SPDX-License-Identifier: BSD-2-Clause

//! A command line as it may be shown: programs are given tokens and passwords there, and what this
//! tool prints ends up in logs.

/// What stands for a value that is not shown.
const MASK: &str = "****";

/// Words in names of options, variables and headers whose values are secret.
const SECRET_WORDS: &[&str] = &[
    "auth", "bearer", "cookie", "cred", "key", "pass", "pwd", "secret", "session", "sig", "token",
];

/// Options whose next argument, or the rest of whose own, is a value that is not shown: curl's and
/// wget's ways to give a user, a body, a cookie, a certificate's password.
const VALUED: &[&str] = &[
    "-u",
    "-d",
    "-b",
    "-E",
    "-F",
    "-T",
    "--user",
    "--data",
    "--form",
    "--post-data",
    "--body-data",
    "--json",
    "--cert",
    "--proxy-user",
    "--url-query",
];

/// The arguments with every value masked that may be a secret: of headers (`Name: value`), of
/// queries, in URLs' user parts, of options and variables whose name says so, and what looks like a
/// key or a token. Names are kept, so that one sees what was done.
pub fn masked(args: &[String]) -> Vec<String> {
    let mut hide_next = false;
    args.iter()
        .enumerate()
        .map(|(place, arg)| {
            if place == 0 {
                return arg.clone();
            }
            let hide = std::mem::replace(&mut hide_next, is_valued(arg));
            if hide && !arg.starts_with("--") {
                return MASK.to_owned();
            }
            one(arg)
        })
        .collect()
}

fn is_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| lower.contains(word))
}

fn is_valued(arg: &str) -> bool {
    if !arg.starts_with('-') || arg.contains('=') {
        return false;
    }
    VALUED.contains(&arg) || arg.starts_with("--data-") || is_secret(arg)
}

fn one(arg: &str) -> String {
    // -uuser:password, -dbody
    if let Some(short) = VALUED
        .iter()
        .find(|option| option.len() == 2 && arg.len() > 2 && arg.starts_with(**option))
        && !arg.starts_with("--")
    {
        return format!("{short}{MASK}");
    }
    if let Some((scheme, rest)) = arg.split_once("://") {
        return url(scheme, rest);
    }
    // An option or variable with its value.
    if let Some((name, value)) = arg.split_once('=')
        && !name.contains(['/', '?', ':', ' '])
    {
        let shown = is_valued(name) || is_secret(name) || looks_secret(value);
        let value = if shown { MASK.to_owned() } else { one(value) };
        return format!("{name}={value}");
    }
    // A header: -HName: value, and any text with a colon and a space.
    if let Some((name, _)) = arg
        .split_once(':')
        .filter(|(_, value)| value.starts_with(' ') || arg.starts_with("-H") || is_secret(arg))
    {
        return format!("{name}: {MASK}");
    }
    if let Some((path, query)) = arg.split_once('?') {
        return format!("{path}?{}", names(query));
    }
    if looks_secret(arg) {
        return MASK.to_owned();
    }
    arg.to_owned()
}

fn url(scheme: &str, rest: &str) -> String {
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, format!("?{}", names(query))),
        None => (rest, String::new()),
    };
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{MASK}@{host}"),
        None => authority.to_owned(),
    };
    format!("{scheme}://{authority}{path}{query}")
}

fn names(query: &str) -> String {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, _)) => format!("{name}={MASK}"),
        None => pair.to_owned(),
    };
    query.split('&').map(pair).collect::<Vec<_>>().join("&")
}

/// Long, without a break, with digits and letters: a key, a token, a hash. Paths and names of files
/// have slashes and dots.
fn looks_secret(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"+-_=".contains(&byte);
    let run = text
        .split(|c: char| !c.is_ascii() || !word(u8::try_from(c).unwrap_or(0)))
        .filter(|run| {
            run.bytes().any(|byte| byte.is_ascii_digit())
                && run.bytes().any(|byte| byte.is_ascii_alphabetic())
        })
        .map(str::len)
        .max();
    run.is_some_and(|length| length >= 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(args: &[&str]) -> String {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        masked(&args).join(" ")
    }

    #[test]
    fn values_that_may_be_secret_are_masked_and_names_are_kept() {
        for (args, expected) in [
            (
                &[
                    "curl",
                    "-H",
                    "X-aws-ec2-metadata-token: AQAE",
                    "http://169.254.169.254/a",
                ][..],
                "curl -H X-aws-ec2-metadata-token: **** http://169.254.169.254/a",
            ),
            (&["curl", "-HX-Token:abc"], "curl -HX-Token: ****"),
            (&["curl", "-u", "user:hunter2"], "curl -u ****"),
            (&["curl", "-uuser:hunter2"], "curl -u****"),
            (&["curl", "--user=a:hunter2"], "curl --user=****"),
            (
                &["curl", "--data-raw", "hunter2", "x"],
                "curl --data-raw **** x",
            ),
            (&["x", "--password", "hunter2"], "x --password ****"),
            (&["x", "--api-key=hunter2"], "x --api-key=****"),
            (
                &["env", "AWS_SECRET_ACCESS_KEY=hunter2", "x"],
                "env AWS_SECRET_ACCESS_KEY=**** x",
            ),
            (
                &["x", "https://u:hunter2@h/p?a=hunter2&b"],
                "x https://****@h/p?a=****&b",
            ),
            (&["x", "/p?a=hunter2"], "x /p?a=****"),
            (&["x", "AKIA0123456789ABCDEF0123"], "x ****"),
            (
                &["x", "--url=https://u:hunter2@h/"],
                "x --url=https://****@h/",
            ),
        ] {
            assert_eq!(shown(args), expected);
        }
    }

    #[test]
    fn what_is_plain_stays() {
        for plain in [
            "python3 -m cloudinit.cmd.main init --local",
            "/usr/bin/amazon-ssm-agent -config /etc/amazon/ssm/amazon-ssm-agent.json",
            "curl -sS --max-time 10 http://169.254.169.254/latest/meta-data/",
            "java -Xmx512m -jar /opt/app/service-1.2.3.jar",
        ] {
            assert_eq!(shown(&plain.split(' ').collect::<Vec<_>>()), plain);
        }
        assert_eq!(masked(&[]), Vec::<String>::new());
    }
}
