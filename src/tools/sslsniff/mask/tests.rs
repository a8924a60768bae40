// SPDX-License-Identifier: BSD-2-Clause

//! What is masked, and what is not, however a stream is cut.

use proptest::prelude::*;

use super::*;

/// Feeds `text` in pieces of these sizes, the last as often as needed.
fn pieces(text: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut masker = Masker::default();
    masker.start_seen();
    let mut out = Vec::new();
    let mut sizes = sizes.iter();
    let mut size = 1;
    let mut rest = text;
    while !rest.is_empty() {
        size = sizes.next().copied().unwrap_or(size).clamp(1, rest.len());
        let mut piece = rest[..size].to_vec();
        masker.mask(out.len() as u64, &mut piece, true);
        out.extend(piece);
        rest = &rest[size..];
    }
    out
}

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: a\r\nAUTHORIZATION:  Bearer x\r\n y\r\nCookie:\r\n\
    X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\nset-cookie: id=1; a:b\nDate: now\r\n\r\nbody";
const MASKED: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nAUTHORIZATION:  ********\r\n *\r\nCookie:\r\n\
    X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\nset-cookie: *********\nDate: now\r\n\r\nbody";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn only_values_of_secret_headers_are_masked() {
    assert_eq!(text(&pieces(REQUEST, &[REQUEST.len()])), text(MASKED));
}

#[test]
fn secret_parameters_of_a_request_are_masked_and_others_are_not() {
    for (line, masked) in [
        (
            "GET /a?b=c&access_token=abc&d=e HTTP/1.1",
            "GET /a?b=c&access_token=***&d=e HTTP/1.1",
        ),
        (
            "POST /a?X-Amz-Signature=ab#id_token=c HTTP/1.1",
            "POST /a?X-Amz-Signature=**#id_token=* HTTP/1.1",
        ),
        (
            "GET /token=abc?tokenized=1&keys=2&code HTTP/1.1",
            "GET /token=abc?tokenized=1&keys=2&code HTTP/1.1",
        ),
        ("GET /?sig=a=b", "GET /?sig=***"),
        (
            "PROPFIND /x?access_token=abc HTTP/1.1",
            "PROPFIND /x?access_token=*** HTTP/1.1",
        ),
        ("PURGE /?sig=a", "PURGE /?sig=*"),
        (
            "GET /?sessionToken=a&refreshToken=b&accessToken=c&sessionid=d",
            "GET /?sessionToken=*&refreshToken=*&accessToken=*&sessionid=*",
        ),
        (
            "GET /?access%5Ftoken=a&%74oken=b&auth%5btoken%5D=c",
            "GET /?access%5Ftoken=*&%74oken=*&auth%5btoken%5D=*",
        ),
        (
            "GET /?auth[token]=a&token[]=b&token[12]=c&user[password]=d",
            "GET /?auth[token]=*&token[]=*&token[12]=*&user[password]=*",
        ),
        (
            "POST /?assertion=a&SAMLResponse=b&ticket=c&otp=d&pass=e",
            "POST /?assertion=*&SAMLResponse=*&ticket=*&otp=*&pass=*",
        ),
        (
            "GET /?token_type=a&token[type]=b&%zz=c&[]=d&max_tokens=e&bypass=f&5=g&=h&%=i",
            "GET /?token_type=a&token[type]=b&%zz=c&[]=d&max_tokens=e&bypass=f&5=g&=h&%=i",
        ),
        (
            "GET /?accesskey=a&secretkey=b&credential=c&passphrase2=d&sid=e&auth_code=f&authcode=g",
            "GET /?accesskey=*&secretkey=*&credential=*&passphrase2=*&sid=*&auth_code=*&authcode=*",
        ),
        (
            "GET /?oauth_signature=a&hmac=b&id_token_hint=c&code_verifier=d&userpass=e&pw=f&tokens=g",
            "GET /?oauth_signature=*&hmac=*&id_token_hint=*&code_verifier=*&userpass=*&pw=*&tokens=*",
        ),
        ("GET  /?token=a", "GET  /?token=*"),
        ("GET\t/?token=a", "GET\t/?token=*"),
    ] {
        let line = format!("{line}\r\nHost: a?token=b\r\n").into_bytes();
        for size in [line.len(), 1, 3] {
            let shown = text(&pieces(&line, &[size]));
            assert_eq!(shown, format!("{masked}\r\nHost: a?token=b\r\n"), "{size}");
        }
    }
}

#[test]
fn a_target_is_masked_whatever_its_method_and_no_other_text_is() {
    for (line, masked) in [
        ("ACL /?access_token=abc", "ACL /?access_token=***"),
        (
            "M-SEARCH /x?token=a HTTP/1.1",
            "M-SEARCH /x?token=* HTTP/1.1",
        ),
        ("X_Y!2 /x?a=b&sig=c#key=d", "X_Y!2 /x?a=b&sig=*#key=*"),
        (
            "MERGE http://u:p@h/?code=a&b",
            "MERGE http://***@h/?code=*&b",
        ),
        ("COOKIE : a", "COOKIE : *"),
        ("COOKIE  : a", "COOKIE  : *"),
        ("Acl /?access_token=abc", "Acl /?access_token=abc"),
        ("THE word?token=abc", "THE word?token=abc"),
        ("A: /?token=abc", "A: /?token=abc"),
        ("42 /?token=abc", "42 /?token=abc"),
        ("I  /?token=abc", "I  /?token=abc"),
        ("I a/b?token=abc", "I a/b?token=abc"),
        ("I a:b@c://d@e", "I a:b@c://d@e"),
    ] {
        let line = format!("{line}\r\nHost: a?token=b\r\n").into_bytes();
        for size in [line.len(), 1, 3] {
            let shown = text(&pieces(&line, &[size]));
            // Cut where a password may be, more is masked.
            if !line.starts_with(b"MERGE") || size == line.len() {
                assert_eq!(shown, format!("{masked}\r\nHost: a?token=b\r\n"), "{size}");
            }
        }
    }
}

#[test]
fn what_is_looked_at_as_a_name_has_all_letters_of_a_token_and_no_end_of_one() {
    for byte in 0..=u8::MAX {
        let of_token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let few_others = b",@\\]}\x7f".contains(&byte);
        assert_eq!(is_name_letter(byte), of_token || few_others, "{byte}");
    }
}

#[test]
fn a_password_in_a_request_s_url_is_masked_and_its_host_is_not() {
    for (line, masked) in [
        (
            "GET http://user:PW@h:80/x?key=a",
            "GET http://*******@h:80/x?key=*",
        ),
        ("GET http://a:p@w@h?a@b", "GET http://*****@h?a@b"),
        (
            "GET https://token@h HTTP/1.1",
            "GET https://*****@h HTTP/1.1",
        ),
        (
            "GET http://h:80/a@b HTTP/1.1",
            "GET http://h:80/a@b HTTP/1.1",
        ),
        ("GET /a://b:c@d HTTP/1.1", "GET /a://b:c@d HTTP/1.1"),
        ("GET //b:c@d HTTP/1.1", "GET //b:c@d HTTP/1.1"),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("CONNECT h:443 HTTP/1.1", "CONNECT h:443 HTTP/1.1"),
    ] {
        let line = format!("{line}\r\nHost: a://b:c@d\r\n");
        let masked = format!("{masked}\r\nHost: a://b:c@d\r\n");
        assert_eq!(calls(&[&line]), masked);
        // However it is cut, nothing more is shown than in one piece.
        for size in 1..line.len() {
            let cut = text(&pieces(line.as_bytes(), &[size]));
            let more = cut.bytes().zip(masked.bytes());
            assert!(more.clone().all(|(cut, whole)| cut == whole || cut == MASK));
            assert!(cut.ends_with("\r\nHost: a://b:c@d\r\n"), "{cut}");
        }
    }
}

#[test]
fn after_a_gap_the_rest_of_a_line_is_masked_and_other_lines_are_not() {
    let mut masker = Masker::default();
    let mut piece = b"Cookie: abc".to_vec();
    assert!(masker.mask(0, &mut piece, true));
    let mut piece = b"def\r\nHost: a".to_vec();
    assert!(masker.mask(100, &mut piece, true));
    assert_eq!(text(&piece), "***\r\nHost: a");
    let mut piece = b"c2Vj: x\r\nHost: a\r\nCookie: x".to_vec();
    assert!(masker.mask(1000, &mut piece, true));
    assert_eq!(text(&piece), "*******\r\nHost: a\r\nCookie: *");
}

#[test]
fn after_a_restart_the_rest_of_a_value_is_masked() {
    let frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x01\x04\0\0\0\x01coo";
    for (before, after, shown) in [
        (
            &b"Cookie: abc"[..],
            &b"def\r\nHost: a"[..],
            &b"***\r\nHost: a"[..],
        ),
        (b"Cookie: abc", b"GET / HTTP", b"**********"),
        (b"Host: a\r\n\r\n", b"GET / HTTP", b"GET / HTTP"),
        // In a frame with headers, and between frames.
        (frames, b"kie\0\0\x01\0\0", b"********"),
        (
            &frames[..24],
            b"\0\0\x03\x01\x04\0\0\0\x01abc",
            b"\0\0\x03\x01\x04\0\0\0\x01***",
        ),
        (&frames[..24], b"abc", b"***"),
    ] {
        let mut masker = Masker::default();
        masker.start_seen();
        masker.mask(0, &mut before.to_vec(), true);
        masker.restart();
        let mut piece = after.to_vec();
        masker.mask(0, &mut piece, true);
        assert_eq!(text(&piece), text(shown));
    }
    // Nothing is known of what was before.
    let mut masker = Masker::default();
    masker.restart();
    let mut piece = b"def\r\nHost: a".to_vec();
    masker.mask(0, &mut piece, true);
    assert_eq!(text(&piece), "***\r\nHost: a");
}

#[test]
fn a_message_that_starts_after_a_gap_is_shown() {
    let mut masker = Masker::default();
    masker.mask(0, &mut b"GET / HTTP/1.1\r\nHo".to_vec(), true);
    let mut piece = b"HTTP/1.1 200 OK\r\nSet-Cookie: a".to_vec();
    assert!(masker.mask(100, &mut piece, true));
    assert_eq!(text(&piece), "HTTP/1.1 200 OK\r\nSet-Cookie: *");
}

/// What is shown of these calls of one direction.
fn calls(calls: &[&str]) -> String {
    let mut masker = Masker::default();
    masker.start_seen();
    let mut shown = Vec::new();
    for call in calls {
        let mut piece = call.as_bytes().to_vec();
        masker.mask(shown.len() as u64, &mut piece, true);
        shown.extend(piece);
    }
    text(&shown)
}

#[test]
fn a_request_that_follows_a_body_without_an_end_of_line_is_masked() {
    let head = "POST / HTTP/1.1\r\n\r\n";
    let request = "GET /x?access_token=abc HTTP/1.1\r\nCookie: a\r\n\r\n";
    let masked = "GET /x?access_token=*** HTTP/1.1\r\nCookie: *\r\n\r\n";
    for body in ["{\"a\":1}", "a", "a=b&c", "a ", "POST /?a", "GET /?token"] {
        assert_eq!(
            calls(&[head, body, request]),
            format!("{head}{body}{masked}")
        );
        let (other, masked) = (request.replace("GET", "ACL"), masked.replace("GET", "ACL"));
        assert_eq!(
            calls(&[head, body, &other]),
            format!("{head}{body}{masked}")
        );
    }
    // It may as well be the rest of a value.
    assert_eq!(
        calls(&["GET / HTTP/1.1\r\nCookie: ", "GET /\r\n"]),
        "GET / HTTP/1.1\r\nCookie: *****\r\n"
    );
}

#[test]
fn after_a_gap_what_no_value_has_is_not_masked() {
    for (after, shown) in [
        (&b"abc\0def"[..], &b"***\0def"[..]),
        (b"\x7fabc\r\nCookie: a", b"\x7fabc\r\nCookie: *"),
        (b"a\tb\xff\r\nabc", b"****\r\nabc"),
        (b"a\r\n b\r\nabc", b"*\r\n *\r\nabc"),
    ] {
        let mut masker = Masker::default();
        let mut piece = after.to_vec();
        masker.mask(100, &mut piece, true);
        assert_eq!(text(&piece), text(shown));
        // There it is known to be one.
        let mut masker = Masker::default();
        masker.mask(0, &mut b"Cookie: a".to_vec(), true);
        let mut piece = after.to_vec();
        masker.mask(100, &mut piece, true);
        let line = piece.split(|byte| b"\r\n".contains(byte)).next();
        assert!(line.unwrap().iter().all(|byte| *byte == MASK));
    }
}

/// A request with a body that has no end of line, and another, as sent and as shown.
const PIPELINED: &str = "POST / HTTP/1.1\r\nContent-Length:  7\r\n\r\n{\"a\":1}\
    GET /x?token=abc HTTP/1.1\nCookie: a\n\n";
const PIPELINED_MASKED: &str = "POST / HTTP/1.1\r\nContent-Length:  7\r\n\r\n{\"a\":1}\
    GET /x?token=*** HTTP/1.1\nCookie: *\n\n";

#[test]
fn a_request_within_one_call_with_the_body_before_it_is_masked() {
    let sent = [PIPELINED; 3].concat();
    let shown = [PIPELINED_MASKED; 3].concat();
    for size in 1..sent.len() {
        assert_eq!(text(&pieces(sent.as_bytes(), &[size])), shown, "{size}");
    }
}

#[test]
fn a_length_that_is_not_the_body_s_shows_no_secret() {
    for length in [0, 1, 5, 23, 25, 39, 40, 41, 42, 47, 60, u64::MAX] {
        // As the answer to HEAD.
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let next = "HTTP/1.1 200 OK\r\nX-Authorization: GET /\r\nCookie: Authorization: a\r\n";
        let shown = "HTTP/1.1 200 OK\r\nX-Authorization: *****\r\nCookie: ****************\r\n";
        assert_eq!(calls(&[&head, next]), format!("{head}{shown}"));
        let both = format!("{head}{next}");
        assert_eq!(calls(&[&both]), format!("{head}{shown}"), "{length}");
    }
}

#[test]
fn every_header_that_holds_a_token_of_a_cloud_is_masked() {
    for header in crate::metadata::headers() {
        // Their values are constants, or names.
        let harmless =
            ["metadata", "metadata-flavor"].contains(&header) || header.starts_with("x-ms-");
        assert_eq!(is_secret(header.as_bytes()), !harmless, "{header}");
    }
}

#[test]
fn a_password_before_the_host_of_connect_is_masked() {
    for (line, masked) in [
        (
            "CONNECT u:p@h:443 HTTP/1.1\r\n",
            "CONNECT ***@h:443 HTTP/1.1\r\n",
        ),
        ("CONNECT h:443 HTTP/1.1\r\n", "CONNECT h:443 HTTP/1.1\r\n"),
    ] {
        let line = line.as_bytes();
        assert_eq!(text(&pieces(line, &[line.len()])), masked);
    }
    // Cut in its midst, what comes may be the password.
    let line = b"CONNECT u:p@h:443 HTTP/1.1\r\n";
    assert!(!text(&pieces(line, &[1])).contains("u:p"));
}

#[test]
fn names_that_say_what_they_hold_are_masked() {
    let long = format!("x-{}-token", "a".repeat(100));
    for name in [
        "Api-Key",
        "apikey",
        "X_API_KEY",
        "Job-Token",
        "Ocp-Apim-Subscription-Key",
        "Private-Token",
        "Proxy-Authorization",
        "Set-Cookie",
        "X-Access-Token",
        "X-Amz-Security-Token",
        "X-Auth-Token",
        "X-Client-Secret",
        "X-Csrf-Token",
        "X-Functions-Key",
        "X-Gitlab-Token",
        "X-Goog-Iam-Authorization-Token",
        "X-Password",
        "X-Vault-Token",
        "X-CSRFToken",
        "X-SessionToken",
        "X-AccessToken",
        "ApiToken",
        "X-Bearer",
        "Authentication",
        "X-User-Authentication",
        "Session",
        "Ticket",
        "X-Cas-Ticket",
        "X-Sid",
        "X-Pass",
        "X-Auth-Token-2",
        "X-Token2",
        "Set-Cookie2",
        "ClientSecret",
        "X_SessionId",
        "Cookie ",
        "X-GitHub-OTP",
        "X-Auth-Code",
        "X-Passcode",
        "X-PIN",
        "PHPSESSID",
        "X~Api~Token",
        "X+Token",
        "X|Api|Key",
        "!Authorization",
        "Authorization \t",
        " Cookie",
        "Auth",
        "JWT",
        "Key",
        "Credentials",
        "Passphrase",
        "AccessKey",
        "X-AuthKey",
        "PrivateKey",
        "X-Api-Keys",
        "X-Auth-Tokens",
        "X-Access-Code",
        "Connect.Sid",
        "X-Auth-Token-Bin",
        "Authentication-Info",
        "Signature",
        "Sid",
        &long,
    ] {
        let line = format!("{name}: abc\r\n").into_bytes();
        let wanted = format!("{name}: ***\r\n");
        assert_eq!(text(&pieces(&line, &[line.len()])), wanted);
        assert_eq!(text(&pieces(&line, &[1])), wanted);
    }
    for name in [
        "Host",
        "Sec-WebSocket-Key",
        "Token-Type",
        "Metadata-Flavor",
        "Content-Type",
        "X-Request-Id",
        "Ticketing",
        "X-Cache-Bypass",
        "X-Max-Tokens-Left",
        "Max-Tokens",
        "Grpc-Status-Details-Bin",
        "WWW-Authenticate",
        "X-2",
        "2",
        "The token",
    ] {
        let line = format!("{name}: abc\r\n").into_bytes();
        assert_eq!(pieces(&line, &[line.len()]), line, "{name}");
    }
}

/// A header as it is sent, and as it is shown.
type Header = (&'static str, &'static str);

const SECRETS: &[Header] = &[
    ("Authorization: a1\r\n", "Authorization: **\r\n"),
    ("Cookie: b2; c=d\r\n", "Cookie: *******\r\n"),
    ("X-Api-Key:e3\r\n", "X-Api-Key:**\r\n"),
    ("Set-Cookie: f4\n", "Set-Cookie: **\n"),
    ("set-cookie: g5\r\n", "set-cookie: **\r\n"),
    (
        "Set-Cookie:\r\n h6\r\n\ti7\r\n",
        "Set-Cookie:\r\n **\r\n\t**\r\n",
    ),
    ("Token:\r\n", "Token:\r\n"),
];
const PLAIN: &[Header] = &[
    ("Host: localhost\r\n", "Host: localhost\r\n"),
    ("Date: now\n", "Date: now\n"),
    ("X-Folded: a\r\n b\r\n", "X-Folded: a\r\n b\r\n"),
    ("\r\n", "\r\n"),
];

fn of_all(headers: &[Header]) -> (String, String) {
    headers.iter().copied().unzip()
}

#[test]
fn secret_headers_that_follow_each_other_are_all_masked() {
    for headers in [
        vec![SECRETS[0], SECRETS[1], SECRETS[2]],
        vec![PLAIN[0], SECRETS[3], SECRETS[4], SECRETS[3], PLAIN[3]],
        vec![SECRETS[5], SECRETS[0], PLAIN[2], SECRETS[6], SECRETS[1]],
    ] {
        let (sent, shown) = of_all(&headers);
        for size in 1..=sent.len() {
            assert_eq!(text(&pieces(sent.as_bytes(), &[size])), shown, "{size}");
        }
    }
}

proptest! {
    #[test]
    fn in_any_order_secret_headers_are_masked_and_others_are_not(
        headers in proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(SECRETS),
                proptest::sample::select(PLAIN),
            ],
            1..20,
        ),
        sizes in proptest::collection::vec(1usize..40, 1..20),
    ) {
        let (sent, shown) = of_all(&headers);
        prop_assert_eq!(text(&pieces(sent.as_bytes(), &sizes)), shown);
    }

    #[test]
    fn how_the_stream_is_cut_makes_no_difference(
        sizes in proptest::collection::vec(1usize..40, 1..20),
    ) {
        let whole = pieces(REQUEST, &[REQUEST.len()]);
        prop_assert_eq!(pieces(REQUEST, &sizes), whole);
    }

    #[test]
    fn what_has_no_header_is_left_alone(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        sizes in proptest::collection::vec(1usize..400, 1..20),
    ) {
        // Nine random bytes that look like a SETTINGS frame are HTTP/2.
        prop_assume!(bytes.get(3) != Some(&4));
        prop_assert_eq!(pieces(&bytes, &sizes), bytes);
    }
}
