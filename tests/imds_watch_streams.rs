// SPDX-License-Identifier: BSD-2-Clause

//! Filter and reader of imds-watch together, without a socket between them: what is found in a stream
//! of requests must not depend on how TCP cuts it up.

mod root {
    use std::cell::RefCell;
    use std::mem::MaybeUninit;
    use std::net::{IpAddr, SocketAddr};
    use std::time::Instant;

    use ebpfkit::endpoint_table::Target;
    use ebpfkit::skel::imds_watch::ImdsWatchSkel;
    use ebpfkit::tools::imds_watch::flow::{Flows, Found, Piece};
    use ebpfkit::tools::imds_watch::packet::{self, Packet};
    use ebpfkit::tools::imds_watch::plan::{Finding, Plan, findings};
    use ebpfkit::tools::imds_watch::program;
    use ebpfkit::tools::imds_watch::rules::Rules;
    use ebpfkit::tools::imds_watch::scanner::Scanner;
    use ebpfkit::tools::imds_watch::watchlist::Watchlist;
    use etherparse::PacketBuilder;
    use libbpf_rs::{OpenObject, ProgramInput};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    const TOKEN: &str = "X-aws-ec2-metadata-token: abc\r\n";

    /// A request as it is told about.
    type Told = (Option<String>, Vec<Finding>);

    enum Filter<'a> {
        /// The program itself.
        Kernel(Box<ImdsWatchSkel<'a>>),
        /// Its automaton alone: made once for many clouds, where loading takes its time.
        Automaton(&'a Scanner),
    }

    impl Filter<'_> {
        fn passes(&self, frame: &[u8], payload: &[u8], mask: u64) -> bool {
            match self {
                Self::Kernel(skel) => {
                    let input = ProgramInput {
                        data_in: Some(frame),
                        ..ProgramInput::default()
                    };
                    let output = skel.progs.imds_watch.test_run(input).expect("runs");
                    output.return_value != 0
                }
                Self::Automaton(scanner) => {
                    let headers = u16::try_from(mask & 0x3f).unwrap();
                    !scanner.clean(payload, headers)
                }
            }
        }
    }

    impl Filter<'_> {
        fn expected(&self, src: SocketAddr, dst: SocketAddr, seq: u32) -> Option<u32> {
            match self {
                Self::Kernel(skel) => program::expected(skel, src, dst, seq),
                Self::Automaton(_) => None,
            }
        }
    }

    struct Pipeline<'a> {
        filter: Filter<'a>,
        plan: &'a Plan,
        /// Where requests go: a target's place in the plan.
        target: usize,
        list: Watchlist,
        sender: RefCell<u32>,
    }

    impl<'a> Pipeline<'a> {
        fn new(object: &'a mut MaybeUninit<OpenObject>, plan: &'a Plan) -> Self {
            let skel = program::load(object, plan, false, false).expect("loads");
            Self::with(Filter::Kernel(Box::new(skel)), plan)
        }

        fn with(filter: Filter<'a>, plan: &'a Plan) -> Self {
            Self {
                filter,
                plan,
                target: 0,
                list: plan.watchlist().unwrap(),
                sender: RefCell::new(0),
            }
        }

        fn target(&self) -> &Target {
            &self.plan.targets[self.target]
        }

        /// The same with requests to this endpoint.
        fn at(self, endpoint: &str) -> Self {
            let named = |one: &Target| one.endpoint.to_string() == format!("{endpoint}/tcp");
            let target = self.plan.targets.iter().position(named).expect(endpoint);
            Self { target, ..self }
        }

        /// What is told about segments (offset in the stream, bytes) on a connection of their own, whose
        /// beginning was seen.
        fn told(&self, segments: &[(usize, &[u8])]) -> Vec<Told> {
            self.told_of(segments, true)
        }

        /// The same where nothing was seen before the first segment.
        fn told_midway(&self, segments: &[(usize, &[u8])]) -> Vec<Told> {
            self.told_of(segments, false)
        }

        fn told_of(&self, segments: &[(usize, &[u8])], begins: bool) -> Vec<Told> {
            let start = u32::MAX - 100; // wraps within many a stream
            let IpAddr::V4(endpoint) = self.target().endpoint.address else {
                panic!("the first address of every cloud is one of IPv4");
            };
            let port = *self.target().endpoint.ports.start();
            let mut sender = self.sender.borrow_mut();
            *sender += 1;
            let [_, b, c, d] = sender.to_be_bytes();
            let (mut flows, now) = (Flows::new(&self.list), Instant::now());
            let mut found = Vec::new();
            if begins && matches!(self.filter, Filter::Kernel(_)) {
                let mut frame = Vec::new();
                PacketBuilder::ethernet2([0; 6], [0; 6])
                    .ipv4(endpoint.octets(), [10, b, c, d], 64)
                    .tcp(port, 4321, 7, 1024)
                    .syn()
                    .ack(start)
                    .write(&mut frame, &[])
                    .unwrap();
                assert!(!self.filter.passes(&frame, &[], 0));
            }
            for (offset, bytes) in segments {
                let seq = start.wrapping_add(u32::try_from(*offset).unwrap());
                let mut frame = Vec::new();
                PacketBuilder::ethernet2([0; 6], [0; 6])
                    .ipv4([10, b, c, d], endpoint.octets(), 64)
                    .tcp(4321, port, seq, 1024)
                    .write(&mut frame, bytes)
                    .unwrap();
                if !self.filter.passes(&frame, bytes, self.target().mask) {
                    continue;
                }
                let wanted = |address: IpAddr| address == endpoint;
                let Packet::Piece {
                    src,
                    dst,
                    seq,
                    payload,
                    reliable: true,
                    ..
                } = packet::decode(&frame[14..], wanted)
                else {
                    panic!("not the packet that was made");
                };
                let piece = Piece {
                    seq,
                    payload,
                    expected: self.filter.expected(src, dst, seq),
                    interface: 1,
                };
                found.extend(flows.push((src, dst), piece, (), now));
            }
            found.extend(flows.finish());
            self.tell(found)
        }

        /// What is told about the whole stream at once, by the reader alone.
        fn whole(&self, stream: &[u8]) -> Vec<Told> {
            let key = (
                "10.0.0.1:1".parse().unwrap(),
                "169.254.169.254:80".parse().unwrap(),
            );
            let mut flows = Flows::new(&self.list);
            let piece = Piece {
                seq: 1,
                payload: stream,
                expected: None,
                interface: 1,
            };
            let mut found = flows.push(key, piece, (), Instant::now());
            found.extend(flows.finish());
            self.tell(found)
        }

        fn tell(&self, found: Vec<Found<()>>) -> Vec<Told> {
            let mask = self.target().mask;
            found
                .into_iter()
                .map(|one| (one.request.path.clone(), findings(&one.request, mask)))
                .filter(|(_, findings)| !findings.is_empty())
                .collect()
        }
    }

    fn plan_for(cloud: &str) -> Plan {
        Plan::new(&[cloud.to_owned()], &[]).unwrap()
    }

    fn plan() -> Plan {
        plan_for("aws")
    }

    fn head(line: &str, headers: &str) -> Vec<u8> {
        format!("{line} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n").into_bytes()
    }

    /// One for each thing that there is to be found, and clean ones.
    fn requests() -> Vec<Vec<u8>> {
        vec![
            head("GET /latest/meta-data/", TOKEN),
            head(
                "PUT /latest/api/token",
                "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n",
            ),
            head("GET /latest/meta-data/", ""),
            head("GET /latest/user-data", TOKEN),
            head("GET /latest/meta-data/iam/security-credentials/x", ""),
            head("GET /latest/%75ser-data", TOKEN),
            head("GET http://169.254.169.254/latest/user-data", TOKEN),
            head("GET /x?recursive=true", TOKEN),
            head("GET /opc/v1/instance/", TOKEN),
            head("GET /latest/a", &format!("{TOKEN}X-Forwarded-For: 1\r\n")),
            head(
                "GET /latest/b",
                &format!("{TOKEN}Host: rebound.example\r\n"),
            ),
            head("GET /latest/c", &format!("{TOKEN}X:\tfoo\r\n bar\r\n")),
            b"GET /latest/d HTTP/1.1\nX-Forwarded-For: 1\n\n".to_vec(),
            head("gEt /latest/e", "x-AWS-ec2-METADATA-token:x\r\nvIa: 1\r\n"),
            head("GET /latest/f", &format!("{TOKEN}Content-Length: 40\r\n")),
        ]
    }

    fn cut<'s>(stream: &'s [u8], places: &[usize]) -> Vec<(usize, &'s [u8])> {
        let mut places = places.to_vec();
        places.extend([0, stream.len()]);
        places.sort_unstable();
        places.dedup();
        places
            .windows(2)
            .map(|two| (two[0], &stream[two[0]..two[1]]))
            .collect()
    }

    #[test]
    fn every_request_is_told_about_the_same_wherever_it_is_cut() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let pipeline = Pipeline::new(&mut object, &plan);
        for request in requests() {
            let shown = request.escape_ascii().to_string();
            let expected = pipeline.whole(&request);
            assert_eq!(pipeline.told(&[(0, &request)]), expected, "{shown}");
            for at in 1..request.len() {
                let segments = cut(&request, &[at]);
                same(
                    &expected,
                    &pipeline.told(&segments),
                    &format!("{at} of {shown}"),
                );
                // Sent again, and the other way round: then nobody knows where it begins who has
                // not seen the connection begin.
                for (order, in_order) in [
                    (&[0, 1, 1, 0][..], true),
                    (&[0, 0, 1], true),
                    (&[1, 0], false),
                    (&[1, 0, 1], false),
                ] {
                    let segments: Vec<_> = order.iter().map(|place| segments[*place]).collect();
                    let shown = format!("{order:?} of {at} of {shown}");
                    same(&expected, &pipeline.told(&segments), &shown);
                    let midway = pipeline.told_midway(&segments);
                    if in_order {
                        same(&expected, &midway, &shown);
                    } else {
                        check(&expected, &midway, &shown).unwrap();
                    }
                }
                let overlap = [(0, &request[..at]), (at / 2, &request[at / 2..])];
                same(
                    &expected,
                    &pipeline.told(&overlap),
                    &format!("overlap at {at} of {shown}"),
                );
            }
        }
    }

    /// Each packet is clean by itself; together they are not what they seem.
    #[test]
    fn no_segment_over_another_hides_a_request() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let pipeline = Pipeline::new(&mut object, &plan);
        let clean = head("GET /latest/meta-data/", TOKEN);
        let prefix = b"GET / HTTP/1.1\r\nX-a: ";
        let secret = head("GET /latest/meta-data/iam/security-credentials/r", TOKEN);
        let over = [&prefix[..], &secret].concat();
        let alone = (0, &clean[..]);
        assert_eq!(pipeline.told(&[alone]), []);
        // In its place again, and behind it: nothing is over anything.
        let next = (clean.len(), &clean[..]);
        assert_eq!(pipeline.told(&[alone, alone, next, next]), []);
        let is_loud = |segments: &[(usize, &[u8])]| {
            for told in [pipeline.told(segments), pipeline.told_midway(segments)] {
                let mut findings = told.iter().flat_map(|(_, findings)| findings);
                assert!(
                    findings.any(|one| *one == Finding::Unparsable),
                    "{segments:?}: {told:?}"
                );
            }
        };
        let hidden = (clean.len() - prefix.len(), &over[..]);
        assert_eq!(pipeline.told(&[(0, &over)]), []);
        is_loud(&[alone, hidden]);
        is_loud(&[alone, next, hidden]);
        is_loud(&[alone, hidden, hidden, next]);
        // Behind a gap, which does not make the filter forget.
        is_loud(&[alone, (1 << 30, &clean), hidden]);
        is_loud(&[alone, (1 << 31, &clean), (3 << 30, &clean), hidden]);
        // Before what was sent too early, and in its place.
        let late = (clean.len(), &secret[..9]);
        let early = (clean.len() + 9, &secret[9..]);
        let other = [&b"X"[..], &secret[10..]].concat();
        let in_place = (clean.len() + 9, &other[..]);
        is_loud(&[alone, early, in_place, late]);
        is_loud(&[alone, in_place, early, late]);
        is_loud(&[alone, early, late, in_place]);
        is_loud(&[alone, early, hidden, late]);
        // The end of it is in the next segment.
        let (start, end) = secret.split_at(secret.len() - 2);
        let behind = (clean.len(), start);
        is_loud(&[
            alone,
            behind,
            (clean.len() - prefix.len(), prefix),
            (clean.len() + start.len(), end),
        ]);
    }

    #[test]
    fn segments_in_any_order_are_put_together() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let pipeline = Pipeline::new(&mut object, &plan);
        let clean = head("GET /latest/meta-data/", TOKEN);
        let secret = head("GET /latest/user-data", TOKEN);
        let stream = [&clean[..], &secret, &clean].concat();
        let expected = pipeline.whole(&stream);
        assert_eq!(expected.len(), 1);
        let places = [30, clean.len(), clean.len() + 20];
        let segments = cut(&stream, &places);
        for order in [[3, 2, 1, 0], [1, 0, 3, 2], [2, 0, 3, 1], [0, 3, 1, 2]] {
            let sent: Vec<_> = order.iter().map(|place| segments[*place]).collect();
            assert_eq!(pipeline.told(&sent), expected, "{order:?}");
        }
    }

    #[test]
    fn every_two_cuts_change_nothing() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let pipeline = Pipeline::new(&mut object, &plan);
        let request = head("GET /latest/user-data", "Via: 1\r\n");
        let expected = pipeline.whole(&request);
        for first in 1..request.len() {
            for second in first + 1..request.len() {
                let told = pipeline.told(&cut(&request, &[first, second]));
                assert_eq!(told, expected, "{first} {second}");
            }
        }
        let bytes: Vec<_> = (1..request.len()).collect();
        assert_eq!(pipeline.told(&cut(&request, &bytes)), expected);
    }

    /// Runs as many cases as EBPFKIT_FUZZ_CASES says, else two thousand.
    fn runner() -> TestRunner {
        let cases = std::env::var("EBPFKIT_FUZZ_CASES").ok();
        TestRunner::new(Config {
            cases: cases.map_or(2_000, |cases| cases.parse().expect("a number")),
            failure_persistence: None,
            ..Config::default()
        })
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let mutation =
            prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8));
        let request = (prop::sample::select(requests()), mutation).prop_map(|(mut bytes, how)| {
            if let Some((at, byte, how)) = how {
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => drop(bytes.drain(at..)),
                }
            }
            bytes
        });
        prop::collection::vec(request, 1..5).prop_map(|all| all.concat())
    }

    #[test]
    fn no_cutting_of_pipelined_requests_hides_one() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let pipeline = Pipeline::new(&mut object, &plan);
        let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..6);
        runner()
            .run(&(stream(), cuts), |(stream, cuts)| {
                prop_assume!(!stream.is_empty());
                let places: Vec<_> = cuts.iter().map(|at| at.index(stream.len())).collect();
                let told = pipeline.told(&cut(&stream, &places));
                let expected = pipeline.whole(&stream);
                check(
                    &expected,
                    &told,
                    &format!("{places:?} of {}", stream.escape_ascii()),
                )
            })
            .unwrap();
    }

    #[test]
    fn no_order_and_no_repetition_of_segments_hides_a_request() {
        let (mut object, plan) = (MaybeUninit::uninit(), plan());
        let pipeline = Pipeline::new(&mut object, &plan);
        let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
        let order = prop::collection::vec(any::<prop::sample::Index>(), 0..6);
        runner()
            .run(&(stream(), cuts, order), |(stream, cuts, order)| {
                prop_assume!(!stream.is_empty());
                let places: Vec<_> = cuts.iter().map(|at| at.index(stream.len())).collect();
                let segments = cut(&stream, &places);
                // Some again and early, then all of them in their order.
                let mut sent: Vec<_> = order.iter().map(|at| *at.get(&segments)).collect();
                sent.extend(&segments);
                let told = pipeline.told(&sent);
                let expected = pipeline.whole(&stream);
                check(
                    &expected,
                    &told,
                    &format!("{sent:?} of {}", stream.escape_ascii()),
                )
            })
            .unwrap();
    }

    /// What everybody reads in the same way is told about in the same way; of what is unparsable, the
    /// rest is told about as well.
    fn same(expected: &[Told], told: &[Told], shown: &str) {
        let all = expected.iter().flat_map(|(_, findings)| findings);
        if all.clone().any(|one| *one == Finding::Unparsable) {
            check(expected, told, shown).unwrap();
        } else {
            assert_eq!(told, expected, "{shown}");
        }
    }

    /// Each request that is told about of the whole stream is told about of its parts with the same
    /// findings; or, where nobody can say where requests begin, as unparsable.
    fn check(expected: &[Told], told: &[Told], shown: &str) -> Result<(), TestCaseError> {
        let unparsable = |all: &[Told]| {
            all.iter()
                .any(|(_, findings)| findings.contains(&Finding::Unparsable))
        };
        for one in expected {
            let same = told.contains(one);
            prop_assert!(
                same || unparsable(told),
                "{one:?} is not in {told:?}: {shown}"
            );
        }
        Ok(())
    }

    /// What is found in requests to one cloud's service, whole and cut in two; a clean one goes no
    /// further than the filter.
    fn each_is_found(pipeline: &Pipeline<'_>, cloud: &str, requests: &[(String, Vec<String>)]) {
        for (request, expected) in requests {
            let bytes = request.as_bytes();
            for segments in [cut(bytes, &[]), cut(bytes, &[bytes.len() / 2])] {
                let told = pipeline.told(&segments);
                let names: Vec<_> = told
                    .iter()
                    .flat_map(|(_, findings)| findings.iter().map(|one| one.name()))
                    .collect();
                assert_eq!(&names, expected, "{cloud}: {request}");
            }
        }
    }

    #[test]
    fn of_real_clients_none_is_missed_and_none_is_suspected() {
        let file = include_str!("imds_watch/clients.json");
        let all: Vec<serde_json::Value> = serde_json::from_str(file).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let mut named: Vec<_> = all
            .iter()
            .map(|one| (text(&one["cloud"]), one["endpoint"].as_str()))
            .collect();
        named.sort_unstable();
        named.dedup();
        for (cloud, endpoint) in named {
            let of_cloud: Vec<_> = all
                .iter()
                .filter(|one| one["cloud"] == cloud && one["endpoint"].as_str() == endpoint)
                .map(|one| {
                    let findings = one["findings"].as_array().unwrap();
                    (text(&one["request"]), findings.iter().map(text).collect())
                })
                .collect();
            for clouds in [&cloud, "all"] {
                // Where clouds share an address it is not said which one this is.
                if clouds == "all" && endpoint.is_none() {
                    continue;
                }
                let (mut object, plan) = (MaybeUninit::uninit(), plan_for(clouds));
                let mut pipeline = Pipeline::new(&mut object, &plan);
                if let Some(endpoint) = endpoint {
                    pipeline = pipeline.at(endpoint);
                }
                each_is_found(&pipeline, clouds, &of_cloud);
            }
        }
    }

    #[test]
    fn every_finding_is_made_at_every_cloud_that_it_can_be_made_at() {
        // The cloud, a plain path and what a request there is to carry, what it is to lack that, and
        // paths with what they are found for.
        type Row = (
            &'static str,
            &'static str,
            &'static str,
            &'static str,
            &'static [(&'static str, &'static str)],
        );
        let aws_token = "X-aws-ec2-metadata-token: t\r\n";
        let rows: &[Row] = &[
            (
                "aws",
                "/latest/meta-data/",
                aws_token,
                "imdsv1",
                &[
                    (
                        "/latest/meta-data/iam/security-credentials/r",
                        "credentials",
                    ),
                    ("/latest/dynamic/instance-identity/document", "credentials"),
                    ("/latest/user-data", "user-data"),
                ],
            ),
            (
                "alibaba",
                "/latest/meta-data/",
                "X-aliyun-ecs-metadata-token: t\r\n",
                "imdsv1",
                &[
                    (
                        "/latest/meta-data/ram/security-credentials/r",
                        "credentials",
                    ),
                    ("/latest/user-data", "user-data"),
                ],
            ),
            (
                "akamai",
                "/v1/instance",
                "Metadata-Token: t\r\n",
                "imdsv1",
                &[("/v1/user-data", "user-data")],
            ),
            (
                "azure",
                "/metadata/instance/network?api-version=2021-02-01",
                "Metadata: true\r\n",
                "missing-metadata-header",
                &[
                    ("/metadata/instance?api-version=2021-02-01", "user-data"),
                    (
                        "/metadata/attested/document?api-version=2021-02-01",
                        "credentials",
                    ),
                    ("/metadata/identity/oauth2/token?resource=x", "credentials"),
                    (
                        "/metadata/instance/compute/userData?format=text",
                        "user-data",
                    ),
                    ("/machine?comp=goalstate", "credentials"),
                ],
            ),
            (
                "gcp",
                "/computeMetadata/v1/instance/zone",
                "Metadata-Flavor: Google\r\n",
                "missing-metadata-header",
                &[
                    (
                        "/computeMetadata/v1/instance/service-accounts/a/token",
                        "credentials",
                    ),
                    (
                        "/computeMetadata/v1/instance/service-accounts/a/identity",
                        "credentials",
                    ),
                    (
                        "/computeMetadata/v1/instance/attributes/kube-env",
                        "credentials",
                    ),
                    (
                        "/computeMetadata/v1/instance/gce-workload-certificates/workload-identities",
                        "credentials",
                    ),
                    (
                        "/computeMetadata/v1/instance/attributes/startup-script",
                        "user-data",
                    ),
                    (
                        "/computeMetadata/v1/instance/attributes/windows-startup-script-ps1",
                        "user-data",
                    ),
                    ("/computeMetadata/v1/?recursive=true", "recursive"),
                    ("/computeMetadata/v1beta1/instance/", "legacy-path"),
                    ("/0.1/meta-data/", "legacy-path"),
                ],
            ),
            (
                "oracle",
                "/opc/v2/instance/id",
                "Authorization: Bearer Oracle\r\n",
                "missing-metadata-header",
                &[
                    ("/opc/v2/identity/cert.pem", "credentials"),
                    ("/opc/v2/instance/", "user-data"),
                    ("/opc/v1/instance/id", "legacy-path"),
                ],
            ),
            (
                "ibm",
                "/metadata/v1/instance",
                "Authorization: Bearer t\r\n",
                "missing-metadata-header",
                &[
                    ("/instance_identity/v1/iam_token", "credentials"),
                    (
                        "/metadata/v1/instance/initialization?version=2022-03-01",
                        "user-data",
                    ),
                ],
            ),
            (
                "openstack",
                "/openstack/latest/",
                "",
                "",
                &[("/openstack/latest/user_data", "user-data")],
            ),
            (
                "hetzner",
                "/hetzner/v1/metadata",
                "",
                "",
                &[("/hetzner/v1/userdata", "user-data")],
            ),
            (
                "digitalocean",
                "/metadata/v1/id",
                "",
                "",
                &[
                    ("/metadata/v1/user-data", "user-data"),
                    ("/metadata/v1.json", "user-data"),
                ],
            ),
            ("scaleway", "/conf", "", "", &[("/user_data", "user-data")]),
            (
                "tencent",
                "/latest/meta-data/",
                "",
                "",
                &[
                    (
                        "/latest/meta-data/cam/security-credentials/r",
                        "credentials",
                    ),
                    (
                        "/latest/meta-data/cam/service-role-security-credentials/r",
                        "credentials",
                    ),
                ],
            ),
            (
                "exoscale",
                "/1.0/meta-data/",
                "",
                "",
                &[("/1.0/user-data", "user-data")],
            ),
            (
                "huawei",
                "/openstack/latest/",
                "",
                "",
                &[("/openstack/latest/securitykey", "credentials")],
            ),
            (
                "upcloud",
                "/metadata/v1/hostname",
                "",
                "",
                &[("/metadata/v1/user_data", "user-data")],
            ),
            (
                "vultr",
                "/v1/hostname",
                "",
                "",
                &[("/v1/user-data", "user-data")],
            ),
        ];
        let scanner = Scanner::new(&plan_for("all").hosts(), &Rules::default()).unwrap();
        for (cloud, path, header, lacking, paths) in rows {
            let host = plan_for(cloud).targets[0].endpoint.address;
            let get = |path: &str, host: &str, headers: &str| {
                format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n")
            };
            let found = |names: &[&str]| -> Vec<String> {
                let names = names.iter().filter(|name| !name.is_empty());
                names.map(|name| (*name).to_owned()).collect()
            };
            let host = host.to_string();
            let mut requests = vec![
                (get(path, &host, header), found(&[])),
                (get(path, &host, ""), found(&[lacking])),
                (
                    get(path, "rebound.example", header),
                    found(&["foreign-host"]),
                ),
                (
                    get(path, &host, &format!("{header}Via: 1.1 x\r\n")),
                    found(&["forwarded"]),
                ),
                (
                    get(path, &host, &format!("{header}X-Forwarded-For: 1\r\n")),
                    found(&["forwarded"]),
                ),
                (
                    get(path, &host, &format!("{header}Content-Length: 5\r\n")),
                    found(&["unparsable"]),
                ),
            ];
            for (path, finding) in *paths {
                requests.push((get(path, &host, header), found(&[finding])));
            }
            let plan = plan_for(cloud);
            let pipeline = Pipeline::with(Filter::Automaton(&scanner), &plan);
            each_is_found(&pipeline, cloud, &requests);
        }
        let named: Vec<_> = rows.iter().map(|row| row.0).collect();
        for cloud in ebpfkit::metadata::names() {
            // Those that hand out credentials, whatever is asked.
            if cloud == "aws-ecs" || cloud == "aws-eks" {
                let header = "Authorization: t\r\n";
                let host = plan_for(cloud).targets[0].endpoint.address;
                let request = format!("GET /v2/x HTTP/1.1\r\nHost: {host}\r\n{header}\r\n");
                let (mut object, plan) = (MaybeUninit::uninit(), plan_for(cloud));
                let pipeline = Pipeline::new(&mut object, &plan);
                each_is_found(
                    &pipeline,
                    cloud,
                    &[(request, vec!["credentials".to_owned()])],
                );
            } else {
                assert!(named.contains(&cloud), "{cloud}");
            }
        }
    }
}
