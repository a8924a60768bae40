// SPDX-License-Identifier: BSD-2-Clause

//! The socket filter of imds-watch on crafted packets, by `test_run`: its verdict compared with a
//! plain function, over thousands of generated requests, and what it costs.

mod root {
    use std::cell::RefCell;
    use std::mem::MaybeUninit;
    use std::net::IpAddr;
    use std::time::Duration;

    use ebpfkit::skel::imds_watch::ImdsWatchSkel;
    use ebpfkit::tools::imds_watch::plan::{Plan, findings};
    use ebpfkit::tools::imds_watch::program;
    use ebpfkit::tools::imds_watch::request::{Step, step};
    use etherparse::{IpFragOffset, PacketBuilder};
    use libbpf_rs::{OpenObject, ProgramInput};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    const IMDS: [u8; 4] = [169, 254, 169, 254];
    const TOKEN: &str = "x-aws-ec2-metadata-token";

    /// The filter as it is for `--cloud aws`, without the hooks and without a socket.
    struct Filter<'o> {
        skel: ImdsWatchSkel<'o>,
        sender: RefCell<u32>,
    }

    impl<'o> Filter<'o> {
        fn new(object: &'o mut MaybeUninit<OpenObject>, plan: &Plan) -> Self {
            let skel = program::load(object, plan, false, false).expect("loads");
            Self {
                skel,
                sender: RefCell::new(0),
            }
        }

        /// An address that no packet came from yet: the filter remembers flows.
        fn sender(&self) -> [u8; 4] {
            let mut sender = self.sender.borrow_mut();
            *sender += 1;
            let [_, b, c, d] = sender.to_be_bytes();
            [10, b, c, d]
        }

        /// Whether the packet, from its Ethernet header on, goes up.
        fn passes(&self, frame: &[u8]) -> bool {
            self.length(frame) != 0
        }

        /// How many bytes of it do, from the network header on.
        fn length(&self, frame: &[u8]) -> u32 {
            let input = ProgramInput {
                data_in: Some(frame),
                ..ProgramInput::default()
            };
            let output = self.skel.progs.imds_watch.test_run(input).expect("runs");
            output.return_value
        }

        /// Whether a request to the endpoint does.
        fn passes_request(&self, payload: &[u8]) -> bool {
            self.passes(&frame(self.sender(), IMDS, 80, payload))
        }
    }

    fn frame(src: [u8; 4], dst: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        frame_from(src, 4321, dst, port, payload)
    }

    fn frame_from(src: [u8; 4], sport: u16, dst: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([0; 6], [0; 6])
            .ipv4(src, dst, 64)
            .tcp(sport, port, 7, 1024)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    fn plan() -> Plan {
        Plan::new(&["aws".to_owned()], &[]).unwrap()
    }

    /// What the filter is to hold for clean, written out by hand.
    /// Each request is to have one of `required`.
    fn is_clean(mut payload: &[u8], required: &[&str]) -> bool {
        if payload.is_empty() || payload.len() > 2048 {
            return false;
        }
        while !payload.is_empty() {
            let Some(length) = clean_request(payload, required) else {
                return false;
            };
            payload = &payload[length..];
        }
        true
    }

    fn clean_request(payload: &[u8], required: &[&str]) -> Option<usize> {
        let line_end = |from: usize| {
            payload[from..]
                .windows(2)
                .position(|two| two == b"\r\n")
                .map(|at| from + at)
        };
        let end = line_end(0)?;
        let (mut has, counting) = clean_request_line(str::from_utf8(&payload[..end]).ok()?)?;
        let mut at = end + 2;
        loop {
            let end = line_end(at)?;
            let line = &payload[at..end];
            at = end + 2;
            if line.is_empty() {
                let counts = |header: &&&str| {
                    has.iter().any(|has| has == **header)
                        && counting.is_none_or(|counting| counting.contains(*header))
                };
                return required.iter().any(|header| counts(&header)).then_some(at);
            }
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = (str::from_utf8(&line[..colon]).ok()?, &line[colon + 1..]);
            let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            if name.is_empty() || !name.chars().all(is_token) {
                return None;
            }
            if value
                .iter()
                .any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f)
            {
                return None;
            }
            let name = name.to_ascii_lowercase();
            let forwarded = [
                "forwarded",
                "forwarded-for",
                "via",
                "x-forwarded",
                "x-real-ip",
                "x-client-ip",
                "x-cluster-client-ip",
                "x-original-forwarded-for",
                "client-ip",
                "true-client-ip",
                "cf-connecting-ip",
                "fastly-client-ip",
                "x-envoy-external-address",
                "cdn-loop",
            ];
            let prefixed = name.starts_with("x-forwarded-");
            if prefixed || forwarded.contains(&name.as_str()) {
                return None;
            }
            if ["transfer-encoding", "upgrade", "expect"].contains(&name.as_str()) {
                return None;
            }
            let zeros = || {
                let value = value.trim_ascii();
                !value.is_empty() && value.iter().all(|byte| *byte == b'0')
            };
            if name == "content-length" && !zeros() {
                return None;
            }
            let value = value.trim_ascii();
            if name == "host" && !str::from_utf8(value).is_ok_and(is_host_of_service) {
                return None;
            }
            if !value.is_empty() && (name != "metadata" || value.eq_ignore_ascii_case(b"true")) {
                has.push(name);
            }
        }
    }

    fn is_host_of_service(host: &str) -> bool {
        let lower = host.to_ascii_lowercase();
        let (host, port) = match lower.strip_suffix(|c: char| c.is_ascii_digit()) {
            Some(_) if lower.contains("]:") || lower.matches(':').count() == 1 => {
                lower.rsplit_once(':').unwrap()
            }
            _ => (lower.as_str(), "80"),
        };
        [
            "169.254.169.254",
            "[fd00:ec2::254]",
            "metadata",
            "instance-data",
        ]
        .contains(&host)
            && port.bytes().all(|byte| byte.is_ascii_digit())
    }

    /// The headers that the request line counts for, and those that count on its path if not all
    /// do; `None` if it is not clean.
    fn clean_request_line(line: &str) -> Option<(Vec<String>, Option<&[&str]>)> {
        let line = line
            .strip_suffix(" HTTP/1.1")
            .or(line.strip_suffix(" HTTP/1.0"))?;
        let (method, target) = line.split_once(' ')?;
        if !["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"].contains(&method) {
            return None;
        }
        let local = target;
        let (path, query) = local.split_once('?').unwrap_or((local, ""));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,:=@".contains(c);
        let segments = path.strip_prefix('/')?;
        let segments = segments.strip_suffix('/').unwrap_or(segments).split('/');
        let dots = |segment: &str| ["", ".", ".."].contains(&segment);
        if path != "/"
            && segments
                .clone()
                .any(|segment| dots(segment) || !segment.chars().all(plain))
        {
            return None;
        }
        if !query.chars().all(|c| plain(c) || "/?".contains(c)) {
            return None;
        }
        let secret = [
            "security-credentials",
            "service-role-security-credentials",
            "workload-identities",
            "identity-credentials",
            "user-data",
            "user_data",
            "userdata",
            "customdata",
            "instance-identity",
            "instance_identity",
            "iam_token",
            "attested",
            "identity",
            "kube-env",
            "certificates",
            "password",
            "securitykey",
        ];
        let legacy = ["/opc/v1", "/computemetadata/v1beta1", "/0.1"];
        let lower_path = path.to_ascii_lowercase();
        if legacy.iter().any(|old| {
            lower_path
                .strip_prefix(old)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }) {
            return None;
        }
        let with_user_data = [
            "/metadata/instance",
            "/metadata/instance/compute",
            "/metadata/v1.json",
            "/metadata/v1/instance/initialization",
            "/opc/v2/instance",
            "/opc/v2/instance/metadata",
        ];
        let trimmed = lower_path.strip_suffix('/').unwrap_or(&lower_path);
        if with_user_data.contains(&trimmed) {
            return None;
        }
        let lower = target.to_ascii_lowercase();
        let (path_lower, query_lower) = lower.split_once('?').unwrap_or((&lower, ""));
        let all: Vec<_> = path_lower.split('/').skip(1).collect();
        let google = all.windows(3).any(|three| {
            three[0] == "service-accounts" && !three[1].is_empty() && three[2] == "token"
        });
        let startup = all
            .windows(2)
            .any(|two| two[0] == "attributes" && two[1] == "startup-script");
        if startup || google || all.iter().any(|segment| secret.contains(segment)) {
            return None;
        }
        let parameter = |parameter: &str| {
            ["recursive", "comp=certificates", "comp=goalstate"]
                .iter()
                .any(|secret| parameter == *secret || parameter.starts_with(&format!("{secret}=")))
        };
        if local.contains('?') && query_lower.split('&').any(parameter) {
            return None;
        }
        let has: &[&str] = match (method, path) {
            ("PUT", "/latest/api/token") => &[TOKEN],
            ("PUT", "/v1/token") => &["metadata-token"],
            _ => &[],
        };
        let first = path[1..].split('/').next()?.to_ascii_lowercase();
        let counting: Option<&[&str]> = match first.as_str() {
            "latest" => Some(&[TOKEN]),
            "computemetadata" => Some(&["metadata-flavor"]),
            "metadata" => Some(&["metadata"]),
            "opc" => Some(&["authorization"]),
            "v1" => Some(&["metadata-token"]),
            first if first.starts_with(|c: char| c.is_ascii_digit()) => Some(&[TOKEN]),
            _ => None,
        };
        Some((has.iter().map(|has| (*has).to_owned()).collect(), counting))
    }

    fn target() -> impl Strategy<Value = String> {
        let words = [
            "latest",
            "meta-data",
            "user-data",
            "USER-DATA",
            "api",
            "token",
            "",
            ".",
            "..",
            "iam",
            "security-credentials",
            "identity",
            "service-accounts",
            "a%62",
            "x;y",
            "a\\b",
            "..a",
            ".a",
            "user-datas",
            "computeMetadata",
            "metadata",
            "opc",
            "OPC",
            "2021-07-15",
            "v1",
            "a b",
            "v1beta1",
            "0.1",
            "attributes",
            "startup-script",
            "instance",
            "compute",
            "v2",
            "v1.json",
            "attested",
            "workload-identities",
            "service-role-security-credentials",
            "metadata/v1/instance/initialization",
        ];
        let path = prop::collection::vec(prop::sample::select(words.to_vec()), 0..5);
        let queries = [
            "",
            "",
            "?",
            "?a=b",
            "?recursive=true",
            "?a&Recursive",
            "?comp=goalstate&x",
            "?a%62",
            "?recursives=1",
            "?a=/?b",
            "?x=recursive=true",
        ];
        let prefixes = [
            "",
            "",
            "",
            "http://169.254.169.254",
            "http://169.254.169.254:80",
            "http://[fd00:ec2::254]",
            "http://evil.example",
            "http://",
            "https://x",
            "x",
        ];
        (
            prop::sample::select(prefixes.to_vec()),
            path,
            any::<bool>(),
            prop::sample::select(queries.to_vec()),
        )
            .prop_map(|(prefix, path, slash, query)| {
                let end = if slash { "/" } else { "" };
                let path: String = path.iter().map(|word| format!("/{word}")).collect();
                format!("{prefix}{path}{end}{query}")
            })
    }

    fn request() -> impl Strategy<Value = Vec<u8>> {
        let methods = [
            "GET", "GET", "GET", "PUT", "HEAD", "POST", "get", "ET", "CONNECT", "",
        ];
        let fixed = [
            "/latest/api/token",
            "/latest/meta-data/",
            "/latest/meta-data/instance-id",
            "/2021-07-15/meta-data/instance-id",
            "/computeMetadata/v1/instance/zone",
            "/metadata/instance/network?api-version=1",
            "/opc/v2/instance/id",
            "/v1/token",
            "/v1/instance",
            "/openstack/latest",
            "/",
        ];
        let targets = prop_oneof![
            2 => prop::sample::select(fixed.to_vec()).prop_map(str::to_owned),
            1 => target(),
        ];
        let headers = [
            "Host: 169.254.169.254",
            "Host: 169.254.169.254:80",
            "host:\tMetadata ",
            "Host: evil.example",
            "Host: 169.254.169.254.evil.example",
            "Host:",
            "X-aws-ec2-metadata-token: t",
            "X-AWS-EC2-METADATA-TOKEN:t",
            "X-aws-ec2-metadata-token: t",
            "X-aws-ec2-metadata-token:",
            "x-aws-ec2-metadata-token: \t",
            "X-aws-ec2-metadata-token : t",
            "Accept: */*",
            "User-Agent: curl/8 (x; y)",
            "X-Forwarded-For: 1",
            "X-Forwarded: x",
            "X-Forwarded-",
            "x-forwarded-:",
            "Client-IP: 1",
            "CDN-Loop: a",
            "CDN-Loops: a",
            "Via: a",
            "Vias: a",
            "Forwarded: x",
            "X-Real-IP: 1",
            "Content-Length: 0",
            "Content-Length: 00 0",
            "Content-Length: 00 ",
            "content-length:\t0",
            "Content-Length: 0x",
            "Content-Length: 12",
            "Content-Length:",
            "Transfer-Encoding: chunked",
            "Expect: x",
            " folded",
            "\tfolded",
            "no colon",
            ":",
            "A:\u{fc}",
            "A: \u{7f}",
            "A: \0",
            "Metadata: true",
            "Metadata:  TRUE ",
            "metadata: false",
            "Metadata-Flavor: Google",
            "Metadata-Token: x",
            "Authorization: Bearer Oracle",
        ];
        let headers = prop::collection::vec(prop::sample::select(headers.to_vec()), 0..5);
        let ends = prop_oneof![19 => Just("\r\n"), 1 => Just("\n")];
        let versions =
            prop_oneof![19 => Just(" HTTP/1.1"), 1 => Just(" HTTP/1.0"), 1 => Just(" HTTP/2")];
        let mutation =
            prop::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8));
        (
            prop::sample::select(methods.to_vec()),
            targets,
            versions,
            headers,
            ends,
            any::<bool>(),
            mutation,
        )
            .prop_map(|(method, target, version, headers, end, token, mutation)| {
                let mut text = format!("{method} {target}{version}{end}");
                for header in headers {
                    text.push_str(&format!("{header}{end}"));
                }
                if token {
                    text.push_str(&format!("{TOKEN}: abc{end}"));
                }
                text.push_str(end);
                let mut bytes = text.into_bytes();
                if let Some((at, byte, how)) = mutation {
                    let at = at.index(bytes.len());
                    match how {
                        0 => bytes[at] = byte,
                        1 => bytes.insert(at, byte),
                        _ => drop(bytes.drain(at..)),
                    }
                }
                bytes
            })
    }

    #[test]
    fn the_kernel_finds_clean_what_a_plain_function_does() {
        compare(&plan(), &[TOKEN]);
        let all = Plan::new(&["all".to_owned()], &[]).unwrap();
        let headers = [
            TOKEN,
            "authorization",
            "metadata",
            "metadata-flavor",
            "metadata-token",
        ];
        compare(&all, &headers);
    }

    fn compare(plan: &Plan, required: &[&str]) {
        let mut object = MaybeUninit::uninit();
        let filter = Filter::new(&mut object, plan);
        let list = plan.watchlist().unwrap();
        let mask = plan.target(IMDS.into(), Some(80)).unwrap().mask;
        let clean = RefCell::new(0);
        let requests = prop::collection::vec(request(), 1..3);
        let mut runner = TestRunner::new(Config {
            cases: 20_000,
            failure_persistence: None,
            ..Config::default()
        });
        runner
            .run(&requests, |requests| {
                let payload = requests.concat();
                let expected = is_clean(&payload, required);
                let passes = !payload.is_empty() && filter.passes_request(&payload);
                prop_assert_eq!(
                    passes,
                    !expected && !payload.is_empty(),
                    "{}",
                    payload.escape_ascii()
                );
                *clean.borrow_mut() += u32::from(expected);
                // And user space has nothing to say about what it is not shown.
                let mut rest = &payload[..];
                while expected && !rest.is_empty() {
                    let Step::Head {
                        request, length, ..
                    } = step(rest, &list)
                    else {
                        return Err(TestCaseError::fail(payload.escape_ascii().to_string()));
                    };
                    prop_assert_eq!(findings(&request, mask), [], "{}", payload.escape_ascii());
                    rest = &rest[length..];
                }
                Ok(())
            })
            .unwrap();
        // Else the test would have compared little.
        assert!(*clean.borrow() > 100, "{clean:?}");
    }

    fn clean_request_bytes(length: usize) -> Vec<u8> {
        let head = format!(
            "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n{TOKEN}: "
        );
        let fill = length - head.len() - 4;
        format!("{head}{}\r\n\r\n", "t".repeat(fill)).into_bytes()
    }

    #[test]
    fn a_payload_longer_than_the_scan_goes_up() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let filter = Filter::new(&mut object, &plan);
        assert!(!filter.passes_request(&clean_request_bytes(2048)));
        assert!(filter.passes_request(&clean_request_bytes(2049)));
    }

    #[test]
    fn only_packets_with_payload_for_the_endpoint_count() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let filter = Filter::new(&mut object, &plan);
        let bad = b"GET / HTTP/1.1\r\n\r\n";
        assert!(filter.passes(&frame(filter.sender(), IMDS, 80, bad)));
        assert!(!filter.passes(&frame(filter.sender(), IMDS, 80, b"")));
        assert!(!filter.passes(&frame(filter.sender(), IMDS, 81, bad)));
        assert!(!filter.passes(&frame(filter.sender(), [169, 254, 169, 253], 80, bad)));
        assert!(!filter.passes(&frame(IMDS, filter.sender(), 80, bad)));
        // Padding of a short Ethernet frame is no payload.
        let mut padded = frame(filter.sender(), IMDS, 80, b"");
        padded.extend([0; 6]);
        assert!(!filter.passes(&padded));
    }

    #[test]
    fn ipv6_extension_headers_fragments_and_tags_are_seen_through() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let filter = Filter::new(&mut object, &plan);
        let bad = b"GET / HTTP/1.1\r\n\r\n";
        let good = clean_request_bytes(200);
        let imds6 = "fd00:ec2::254"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets();
        let v6 = |payload: &[u8], options: bool| {
            let mut tcp = Vec::new();
            PacketBuilder::ethernet2([0; 6], [0; 6])
                .ipv6(
                    [u8::from(options) + u8::try_from(payload.len()).unwrap(); 16],
                    imds6,
                    64,
                )
                .tcp(4321, 80, 7, 1024)
                .write(&mut tcp, payload)
                .unwrap();
            if options {
                // Destination options (60) with one PadN, before TCP.
                let next = std::mem::replace(&mut tcp[14 + 6], 60);
                let length = u16::from_be_bytes([tcp[18], tcp[19]]) + 8;
                tcp[18..20].copy_from_slice(&length.to_be_bytes());
                tcp.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
            }
            tcp
        };
        for options in [false, true] {
            assert!(!filter.passes(&v6(&good, options)));
            assert!(filter.passes(&v6(bad, options)));
        }
        let tagged = |tags, payload: &[u8]| {
            let mut bytes = frame(filter.sender(), IMDS, 80, payload);
            // Priority 2 makes the tag's first byte that of an IPv4 header.
            let tag = [0x81, 0x00, 0x40 + 5, 0x07];
            bytes.splice(12..12, tag.repeat(tags));
            bytes
        };
        for tags in 1..=8 {
            assert!(!filter.passes(&tagged(tags, &good)), "{tags}");
            assert!(filter.length(&tagged(tags, bad)) > 1, "{tags}");
        }
        // No more are looked behind, and nobody is to read what is there.
        assert_eq!(filter.length(&tagged(9, &good)), 1);
        let mut first = frame(filter.sender(), IMDS, 80, &good);
        first[14 + 6] |= 0x20;
        assert!(filter.passes(&first), "a first fragment");
        let mut later = frame(filter.sender(), IMDS, 80, &good);
        later[14 + 7] = u8::try_from(IpFragOffset::ZERO.value() + 9).unwrap();
        assert!(filter.passes(&later), "a later fragment");
    }

    /// Of an address from which nothing else tells an endpoint's than the endpoint itself.
    #[test]
    fn every_endpoint_is_seen_in_both_directions_whoever_speaks_with_it() {
        let own = ["192.0.2.7", "[2001:db8:7::7]", "203.0.113.0/24"];
        let own = own.map(|text| format!("{text}:80").parse().unwrap());
        let plan = Plan::new(&["all".to_owned()], &own).unwrap();
        let mut object = MaybeUninit::uninit();
        let filter = Filter::new(&mut object, &plan);
        let all = || plan.targets.iter().zip(1000..);
        let mut tried = 0;
        // Some of these may look like an endpoint's half.
        for ((target, client), other) in all().flat_map(|one| (1..=8).map(move |n| (one, 25 * n))) {
            let port = *target.endpoint.ports.start();
            let segment = |there: bool, payload: &[u8]| {
                let ethernet = PacketBuilder::ethernet2([0; 6], [0; 6]);
                let ip = match target.endpoint.address {
                    IpAddr::V4(address) => {
                        let (from, to) = ([other; 4], address.octets());
                        let (from, to) = if there { (from, to) } else { (to, from) };
                        ethernet.ipv4(from, to, 64)
                    }
                    IpAddr::V6(address) => {
                        let (from, to) = ([other; 16], address.octets());
                        let (from, to) = if there { (from, to) } else { (to, from) };
                        ethernet.ipv6(from, to, 64)
                    }
                };
                let tcp = if there {
                    ip.tcp(client, port, 7, 1024).ack(100)
                } else {
                    ip.tcp(port, client, 100, 1024)
                };
                let mut bytes = Vec::new();
                tcp.write(&mut bytes, payload).unwrap();
                bytes
            };
            let request = segment(true, b"GET /latest/user-data HTTP/1.0\r\n\r\n");
            let answer = segment(false, b"HTTP/1.1 200 OK\r\n\r\n");
            assert!(filter.passes(&request), "{} {other}", target.endpoint);
            assert!(filter.passes(&answer), "{} {other}", target.endpoint);
            tried += 1;
        }
        assert!(tried >= 8 * 20, "{tried}");
    }

    /// Who writes whole frames says what is in them, and the kernel believes it.
    #[test]
    fn a_frame_of_the_wrong_type_hides_no_packet() {
        let endpoints = ["192.0.2.7:80", "[2001:db8::7]:80"].map(|text| text.parse().unwrap());
        let plan = Plan::new(&[], &endpoints).unwrap();
        let mut object = MaybeUninit::uninit();
        let filter = Filter::new(&mut object, &plan);
        let bad = b"GET / HTTP/1.1\r\n\r\n";
        let v4 = frame(filter.sender(), [192, 0, 2, 7], 80, bad);
        let mut v6 = Vec::new();
        let to: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
        PacketBuilder::ethernet2([0; 6], [0; 6])
            .ipv6([1; 16], to.octets(), 64)
            .tcp(4321, 80, 7, 1024)
            .write(&mut v6, bad)
            .unwrap();
        for mut bytes in [v4, v6] {
            for kind in [[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06]] {
                bytes[12..14].copy_from_slice(&kind);
                assert!(filter.passes(&bytes), "{kind:02x?}: {:02x}", bytes[14]);
            }
        }
    }

    /// A tag's number may make it the first byte of an IPv4 header, and the source behind it one that is
    /// made of the halves of two endpoints.
    #[test]
    fn a_tag_that_looks_like_a_header_hides_no_packet() {
        let endpoints = ["10.1.0.1:80", "10.2.0.2:80"].map(|text| text.parse().unwrap());
        let plan = Plan::new(&[], &endpoints).unwrap();
        let mut object = MaybeUninit::uninit();
        let filter = Filter::new(&mut object, &plan);
        let bad = b"GET / HTTP/1.1\r\n\r\n";
        for tags in [1, 2] {
            let mut bytes = frame([10, 1, 0, 2], [10, 1, 0, 1], 80, bad);
            bytes.splice(12..12, [0x81, 0x00, 0x45, 0x07].repeat(tags));
            assert!(filter.passes(&bytes), "{tags}");
        }
    }

    #[test]
    fn the_beginning_of_a_request_may_come_with_the_connection() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let filter = Filter::new(&mut object, &plan);
        let (sender, good) = (filter.sender(), clean_request_bytes(200));
        let start = b"GET /latest/meta-data/ HTTP/1.1\r\nX-a: ";
        let mut first = frame(sender, IMDS, 80, start);
        first[14 + 20 + 13] = 0x02;
        assert!(filter.passes(&first));
        let next = 7 + 1 + u32::try_from(start.len()).unwrap();
        let mut answer = frame(IMDS, sender, 4321, b"");
        answer[14 + 20..][..2].copy_from_slice(&80_u16.to_be_bytes());
        answer[14 + 20 + 8..][..4].copy_from_slice(&next.to_be_bytes());
        answer[14 + 20 + 13] = 0x12;
        assert!(!filter.passes(&answer));
        let mut rest = frame(sender, IMDS, 80, &good);
        rest[14 + 20 + 4..][..4].copy_from_slice(&next.to_be_bytes());
        assert!(filter.passes(&rest));
    }

    #[test]
    fn after_anything_but_whole_requests_a_flow_is_watched_until_it_begins_anew() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let filter = Filter::new(&mut object, &plan);
        let (good, sender) = (clean_request_bytes(200), filter.sender());
        let next = std::cell::Cell::new(7_u32);
        let send = |payload: &[u8]| {
            let mut bytes = frame(sender, IMDS, 80, payload);
            bytes[14 + 20 + 4..][..4].copy_from_slice(&next.get().to_be_bytes());
            next.set(next.get() + u32::try_from(payload.len()).unwrap());
            filter.passes(&bytes)
        };
        let syn = |src, dst, ports: (u16, u16), flags| {
            let mut bytes = Vec::new();
            PacketBuilder::ethernet2([0; 6], [0; 6])
                .ipv4(src, dst, 64)
                .tcp(ports.0, ports.1, next.get().wrapping_sub(1), 1024)
                .write(&mut bytes, b"")
                .unwrap();
            bytes[14 + 20 + 8..][..4].copy_from_slice(&next.get().to_be_bytes());
            bytes[14 + 20 + 13] = flags;
            assert!(!filter.passes(&bytes));
        };
        assert!(!send(&good));
        assert!(send(b"GET / HTTP/1.1\r\n\r\n"), "whole, though suspicious");
        assert!(!send(&good));
        assert!(send(b"GET /"));
        assert!(send(&good));
        // Anybody with a raw socket sends this, and the service ignores it.
        syn(sender, IMDS, (4321, 80), 0x02);
        assert!(send(&good));
        // The service's answer to a new connection.
        next.set(1 << 31);
        syn(IMDS, sender, (80, 4321), 0x12);
        assert!(!send(&good));
        // Whole, but nobody knows where the next one begins.
        assert!(send(b"GET / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"));
        assert!(send(&good));
    }

    /// Of a filter that counts within `window`, how many packets of one sender, each on a connection of
    /// its own and `payload(number)`, come before the first one that goes up; `None` if none does.
    fn unseen(filter: &Filter<'_>, payload: impl Fn(u16) -> String) -> Option<u16> {
        let sender = filter.sender();
        (0..400).find(|number| {
            let payload = payload(*number);
            assert!(is_clean(payload.as_bytes(), &[TOKEN]), "{payload}");
            filter.passes(&frame_from(
                sender,
                1024 + number,
                IMDS,
                80,
                payload.as_bytes(),
            ))
        })
    }

    #[test]
    fn clean_requests_of_a_sender_that_tries_many_paths_go_up() {
        let plan = plan().with_window(Duration::from_secs(1 << 32));
        let mut object = MaybeUninit::uninit();
        let filter = Filter::new(&mut object, &plan);
        let get =
            |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\n{more}{TOKEN}: t\r\n\r\n");
        // Few of them have a hash that another one has, and are taken for that.
        for alike in [
            "/latest/",
            "/latest/meta-data/tags/instance/name-that-is-long-",
        ] {
            let first = unseen(&filter, |number| get(&format!("{alike}{number}"), "")).unwrap();
            assert!((64..90).contains(&first), "{first}");
        }
        // Path and method count, and nothing else does.
        let same = |number: u16| match number % 4 {
            0 => get("/latest/meta-data/", &format!("X: {number}\r\n")),
            1 => get(&format!("/latest/meta-data/?x={number}"), ""),
            2 => get("/latest/meta-data/", "").replace("HTTP/1.1", "HTTP/1.0"),
            _ => get("/latest/meta-data/", "").replace("GET", "PUT"),
        };
        assert_eq!(unseen(&filter, same), None);
        // Of several in a packet, each one does.
        let (one, another) = (get("/latest/one", ""), get("/latest/two", ""));
        let first = unseen(&filter, |number| {
            format!("{one}{}{another}", get(&format!("/{number}"), ""))
        });
        assert!((21..30).contains(&first.unwrap()), "{first:?}");
        assert_eq!(unseen(&filter, |_| format!("{one}{another}")), None);
        // Who has scanned is watched; others are not.
        let (scanner, other) = (filter.sender(), filter.sender());
        let from = |sender, number: u16, path: &str| {
            let payload = get(path, "");
            filter.passes(&frame_from(sender, number, IMDS, 80, payload.as_bytes()))
        };
        for number in 0..100 {
            from(scanner, number, &format!("/{number}"));
        }
        assert!(from(scanner, 200, "/1"));
        assert!(!from(other, 200, "/1"));
    }

    #[test]
    fn not_found_goes_up_for_those_whose_clean_requests_do() {
        let plan = plan().with_window(Duration::from_secs(1 << 32));
        let mut object = MaybeUninit::uninit();
        let filter = Filter::new(&mut object, &plan);
        let sender = filter.sender();
        let answer = |status: &str, number: u32| {
            let mut bytes = Vec::new();
            let payload = format!("HTTP/1.1 {status}\r\nX-Secret: s\r\n\r\n");
            PacketBuilder::ethernet2([0; 6], [0; 6])
                .ipv4(IMDS, sender, 64)
                .tcp(80, 4321, 100 * number, 1024)
                .write(&mut bytes, payload.as_bytes())
                .unwrap();
            filter.length(&bytes)
        };
        for number in 0..8 {
            assert_eq!(answer("404 Not Found", number), 0, "{number}");
        }
        assert_eq!(answer("200 OK", 8), 0);
        // Headers of IP and TCP, and "HTTP/1.1 404".
        assert_eq!(answer("404 Not Found", 9), 20 + 20 + 12);
    }

    #[test]
    fn paths_that_are_not_asked_for_within_the_window_are_not_many() {
        let plan = plan().with_window(Duration::ZERO);
        let mut object = MaybeUninit::uninit();
        let filter = Filter::new(&mut object, &plan);
        let get = |number| format!("GET /{number} HTTP/1.1\r\n{TOKEN}: t\r\n\r\n");
        assert_eq!(unseen(&filter, get), None);
    }
}
