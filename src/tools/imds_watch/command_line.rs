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
/// wget's ways to give a user, a body, a cookie, a certificate's password; and `-p`, which is a
/// password to sshpass and mysql (and a port to others).
const VALUED: &[&str] = &[
    "-u",
    "-d",
    "-b",
    "-E",
    "-F",
    "-T",
    "-p",
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
/// key or a token. Names are kept, so that one sees what was done. An argument of several words (a
/// script, a body) may hold any secret in any form, and is masked whole.
pub fn masked(args: &[String]) -> Vec<String> {
    let mut hide_next = false;
    args.iter()
        .enumerate()
        .map(|(place, arg)| {
            if place == 0 {
                return title(arg);
            }
            let hide = std::mem::replace(&mut hide_next, is_valued(arg));
            if hide && !arg.starts_with("--") {
                return MASK.to_owned();
            }
            one(arg)
        })
        .collect()
}

/// The first argument is the program, or what it shows of itself: its whole command line, perhaps.
fn title(arg: &str) -> String {
    let mut words = arg.split(' ');
    let program = words.next().unwrap_or_default().to_owned();
    let rest: Vec<_> = words.map(str::to_owned).collect();
    if rest.is_empty() {
        return program;
    }
    let words: Vec<_> = std::iter::once(program).chain(rest).collect();
    masked(&words).join(" ")
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
    // A header: -HName: value, and any text with a colon and a space.
    let header = arg.split_once(':').filter(|(name, value)| {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = name.chars().all(is_token);
        is_name && (value.starts_with(' ') || arg.starts_with("-H") || is_secret(name))
    });
    if let Some((name, value)) = header
        && !value.starts_with("//")
    {
        return format!("{name}: {MASK}");
    }
    // An option or variable with its value.
    if let Some((name, value)) = arg.split_once('=')
        && !name.contains(['/', '?', ':'])
        && !is_script(name)
    {
        let hidden = is_valued(name) || is_secret(name) || looks_secret(value);
        let name = plain(name);
        let value = if hidden { MASK.to_owned() } else { one(value) };
        return format!("{name}={value}");
    }
    if is_script(arg) {
        return MASK.to_owned();
    }
    if let Some((scheme, rest)) = arg.split_once("://") {
        return url(scheme, rest);
    }
    if let Some((path, query)) = arg.split_once('?') {
        return format!("{}?{}", plain(path), names(query));
    }
    // user:password@host
    if let Some((user, host)) = arg.rsplit_once('@')
        && user.contains(':')
    {
        return format!("{MASK}@{}", plain(host));
    }
    plain(arg)
}

/// More than one word, or a piece of some language: anything can be in it.
fn is_script(arg: &str) -> bool {
    arg.contains(|c: char| c.is_whitespace() || "\"'`(){};$<>|".contains(c))
}

fn url(scheme: &str, rest: &str) -> String {
    let (rest, query) = match rest.split_once(['?', '#']) {
        Some((rest, query)) => (rest, format!("?{}", names(query))),
        None => (rest, String::new()),
    };
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{MASK}@{}", plain(host)),
        None => plain(authority),
    };
    let path: Vec<_> = path.split('/').map(plain).collect();
    format!("{}://{authority}{}{query}", plain(scheme), path.join("/"))
}

fn names(query: &str) -> String {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, _)) => format!("{}={MASK}", plain(name)),
        None => plain(pair),
    };
    query.split('&').map(pair).collect::<Vec<_>>().join("&")
}

/// The text, if it does not look like a secret.
fn plain(text: &str) -> String {
    let shown = if looks_secret(text) { MASK } else { text };
    shown.to_owned()
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
            (
                &[
                    "python3",
                    "-c",
                    "get('http://h/', headers={'X-aws-ec2-metadata-token':'hunter2'})",
                ],
                "python3 -c ****",
            ),
            (
                &["sh", "-c", "curl -H \"Authorization: hunter2\" http://h/"],
                "sh -c ****",
            ),
            (&["sh", "-c", "TOKEN=hunter2 x"], "sh -c TOKEN=****"),
            (&["sh", "-c", "X=1 y hunter2"], "sh -c X=****"),
            (&["sh", "-c", "x\thunter2: 1"], "sh -c ****"),
            (&["x", "{\"a\":\"hunter2\"}"], "x ****"),
            (&["sshpass", "-p", "hunter2", "ssh"], "sshpass -p **** ssh"),
            (&["mysql", "-phunter2"], "mysql -p****"),
            (&["x", "user:hunter2@host"], "x ****@host"),
            (&["x", "token=http://hunter2/"], "x token=****"),
            (
                &["x", "http://h/AKIA0123456789ABCDEF0123/y"],
                "x http://h/****/y",
            ),
            (&["x", "AKIA0123456789ABCDEF0123://h/"], "x ****://h/"),
            (
                &["x", "http://h/y#hunter=hunter2"],
                "x http://h/y?hunter=****",
            ),
            (
                &["x --password hunter2 -u a:hunter2"],
                "x --password **** -u ****",
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
            "x --listen=127.0.0.1:80 --name=a.b me@host /dev/disk0",
        ] {
            assert_eq!(shown(&plain.split(' ').collect::<Vec<_>>()), plain);
        }
        // As some show themselves.
        for title in ["nginx: worker process", "sshd: root [priv]", "(sd-pam)"] {
            assert_eq!(shown(&[title]), title);
        }
        assert_eq!(masked(&[]), Vec::<String>::new());
    }
}
