// SPDX-License-Identifier: BSD-2-Clause

//! The guard's verdicts, one packet at a time by the kernel's test run, against a plain function
//! that says what they should be.

mod common;
#[path = "tc_guard_verdicts/packets.rs"]
mod packets;
#[path = "tc_guard_verdicts/reference.rs"]
mod reference;

mod root {
    use std::cell::Cell;
    use std::net::IpAddr;
    use std::os::fd::AsRawFd as _;

    use ebpfkit::endpoint::{Endpoint, Protocol};
    use ebpfkit::kernel::cgroup;
    use ebpfkit::tools::tc_guard::plan::Plan;
    use ebpfkit::tools::tc_guard::policy::{Deny, Limit, Mode, Policy, Rule, Subject};
    use ebpfkit::tools::tc_guard::report::Reason;
    use ebpfkit::tools::tc_guard::{Guard, Hook};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::common::cgroups::Cgroups;
    use super::common::dice::Dice;
    use super::common::{IMDS4, IMDS6, Netns, inside};
    use super::packets::{Crafted, SHORTEST, crafted};
    use super::reference::{Cgroup, Fate, Model, ModelRule, Socket, Start, reference};

    const ENDPOINTS: &[&str] = &[
        "169.254.169.254:80/tcp",
        "[fd00:ec2::254]:80/tcp",
        "10.1.0.0/16:1000-2000",
        "10.1.2.0/24:53/udp",
        "192.0.2.7",
        "[fd00:5::]/32:443",
        "2001:db8::1",
    ];

    fn endpoints() -> Vec<Endpoint> {
        ENDPOINTS.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn plan(root_may: bool) -> Plan {
        let users: &[&str] = if root_may { &["0"] } else { &[] };
        Plan::new(&Policy::of(&endpoints(), users), None).unwrap()
    }

    /// In force, though nowhere attached.
    fn guard(plan: &Plan) -> Guard {
        let guard = Guard::load(plan, Guard::method(), None).unwrap();
        guard.arm().unwrap();
        guard
    }

    #[test]
    fn every_generated_packet_is_judged_as_the_reference_says() {
        let endpoints = endpoints();
        let (open, closed) = (guard(&plan(true)), guard(&plan(false)));
        let fates = [const { Cell::new(0u32) }; 3];
        // An emulated machine takes a hundred times as long for a packet.
        let cases = if std::env::var_os("EBPFKIT_VM").is_some() {
            1_000
        } else {
            20_000
        };
        let config = Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&crafted(), |crafted| {
                let frame = crafted.frame();
                for (guard, root_may) in [(&open, true), (&closed, false)] {
                    let ran = match guard.test_run(Hook::EgressEth, &frame, 1) {
                        Ok(ran) => ran,
                        // Newer kernels want a whole network header for their test run.
                        Err(_) if frame.len() < SHORTEST + 40 => return Ok(()),
                        Err(err) => panic!("{err:#}"),
                    };
                    let model = Model {
                        rules: vec![ModelRule {
                            endpoints: endpoints.clone(),
                            root: root_may,
                            cgroups: Vec::new(),
                            audit: false,
                        }],
                        silent: false,
                        audit: false,
                    };
                    let socket = Socket {
                        there: true,
                        known: true,
                        cgroup: None,
                    };
                    let expected = reference(&frame, Start::Ethernet, &model, &socket);
                    prop_assert_eq!(Fate::of(&frame, &ran), expected, "{:02x?}", &frame);
                    let seen = &fates[expected as usize];
                    seen.set(seen.get() + 1);
                }
                Ok(())
            })
            .unwrap();
        assert!(
            fates.iter().all(|count| count.get() > cases / 100),
            "the generator is one-sided: {fates:?}"
        );
    }

    /// Policies of any kind, as the guard and as the reference know them: rules whose endpoints
    /// overlap, with and without the packets' owner and its cgroups among their subjects.
    fn policy(dice: &mut Dice, cgroups: &Cgroups) -> (Policy, Model) {
        let all = endpoints();
        let count = dice.pick(&[1, 2, 5, 63]);
        let rules: Vec<_> = (0..count)
            .map(|number| {
                let mut endpoints: Vec<_> = (0..=dice.below(3))
                    .map(|_| all[dice.below(all.len())].clone())
                    .collect();
                if count == 63 {
                    // So that no two rules are of the same kind.
                    endpoints.push(format!("10.9.0.{number}").parse().unwrap());
                }
                let seldom = if count == 63 { 15 } else { 1 };
                let mut subjects = [Cgroup::Parent, Cgroup::Child, Cgroup::Other].to_vec();
                subjects.retain(|_| dice.once_in(4 * seldom));
                ModelRule {
                    endpoints,
                    root: dice.once_in(2 * seldom),
                    cgroups: subjects,
                    audit: dice.once_in(3),
                }
            })
            .collect();
        let model = Model {
            rules,
            silent: dice.once_in(4),
            audit: dice.once_in(6),
        };
        let mode = |audit| if audit { Mode::Audit } else { Mode::Enforce };
        let name = |of| {
            let below = match of {
                Cgroup::Parent => "",
                Cgroup::Child => "/child",
                Cgroup::Other => "/child/none",
            };
            Subject::from(format!("{}{below}", cgroups.path).as_str())
        };
        let rules = model.rules.iter().map(|rule| Rule {
            endpoints: rule.endpoints.clone(),
            users: vec![Subject::from(if rule.root { "0" } else { "54321" })],
            cgroups: rule.cgroups.iter().map(|of| name(*of)).collect(),
            mode: mode(rule.audit),
            ..Rule::default()
        });
        let policy = Policy {
            rules: rules.collect(),
            mode: mode(model.audit),
            deny: if model.silent {
                Deny::Drop
            } else {
                Deny::Reset
            },
            ..Policy::default()
        };
        (policy, model)
    }

    /// Where the packets' sockets are made.
    struct Context<'a> {
        cgroup: Option<Cgroup>,
        /// Another network namespace than the guard's.
        netns: Option<&'a Netns>,
    }

    impl Context<'_> {
        fn inside<T>(&self, cgroups: &Cgroups, work: impl FnOnce() -> T) -> T {
            let work = || inside(self.netns, work);
            match self.cgroup {
                Some(Cgroup::Child) => cgroups.inside("child", work),
                Some(_) => cgroups.inside("", work),
                None => work(),
            }
        }
    }

    /// Judges a packet of this policy's; says what became of it, unless the kernel does not run it.
    fn judge(
        dice: &mut Dice,
        addresses: &[IpAddr],
        guard: &Guard,
        model: &Model,
        at: &Context<'_>,
    ) -> Option<Fate> {
        let mut frame = dice.packet(addresses).frame();
        let hook = dice.pick(&[Hook::EgressEth, Hook::EgressIp, Hook::IngressEth]);
        let mut start = Start::Ethernet;
        if hook == Hook::EgressIp {
            frame.drain(..14.min(frame.len()));
            start = Start::Network;
        }
        // With CAP_PERFMON every kernel can say whose it is.
        assert!(guard.knows_namespaces());
        let home = at.netns.is_none();
        let socket = Socket {
            there: !(home && hook == Hook::IngressEth),
            known: home,
            cgroup: at.cgroup,
        };
        let ran = match guard.test_run(hook, &frame, 1) {
            Ok(ran) => ran,
            // Newer kernels want a whole network header for their test run.
            Err(_) if frame.len() < SHORTEST + 40 => return None,
            Err(err) => panic!("{err:#}"),
        };
        let expected = reference(&frame, start, model, &socket);
        let fate = Fate::of(&frame, &ran);
        assert_eq!(fate, expected, "{hook:?} {socket:?} {model:?} {frame:02x?}");
        // A packet that passes is the same once more, when its socket is known.
        if fate == Fate::Passes && dice.once_in(4) {
            let again = Fate::of(&frame, &guard.test_run(hook, &frame, 2).unwrap());
            assert_eq!(again, fate, "{hook:?} {socket:?} {model:?} {frame:02x?}");
        }
        Some(fate)
    }

    #[test]
    fn a_million_packets_and_policies_are_judged_as_the_reference_says() {
        // An emulated machine takes a hundred times as long for a packet: 10,000 there.
        let (policies, packets) = if std::env::var_os("EBPFKIT_VM").is_some() {
            (8, 1_250)
        } else {
            (80, 12_500)
        };
        let mut dice = Dice(0x6562_7066);
        let addresses: Vec<IpAddr> = [
            IMDS4,
            IMDS4,
            IMDS4,
            "169.254.169.253",
            "10.1.0.1",
            "10.1.2.3",
            "10.1.2.3",
            "10.2.2.3",
            "10.9.0.62",
            "192.0.2.7",
            "192.0.2.7",
            "8.8.8.8",
            IMDS6,
            IMDS6,
            "fd00:ec2::253",
            "fd00:5::1",
            "fd00:5::1",
            "fd00:6::1",
            "2001:db8::1",
            "2001:db8::1",
            "2001:db8::2",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let mut fates = [0_u32; 3];
        let mut judged = 0;
        let (cgroups, foreign) = (Cgroups::new(), Netns::new());
        let root = cgroup::mount();
        for _ in 0..policies {
            let (policy, model) = policy(&mut dice, &cgroups);
            let plan = Plan::new(&policy, root.as_deref()).unwrap();
            let guard = Guard::load(&plan, Guard::method(), root.as_deref()).unwrap();
            guard.allow_cgroups(&plan, root.as_deref()).unwrap();
            guard.arm().unwrap();
            let context = Context {
                cgroup: dice.pick(&[None, Some(Cgroup::Parent), Some(Cgroup::Child)]),
                netns: dice.once_in(3).then_some(&foreign),
            };
            context.inside(&cgroups, || {
                for _ in 0..packets {
                    let fate = judge(&mut dice, &addresses, &guard, &model, &context);
                    if let Some(fate) = fate {
                        fates[fate as usize] += 1;
                        judged += 1;
                    }
                }
            });
        }
        assert!(judged > policies * packets * 8 / 10, "{judged}");
        assert!(
            fates.iter().all(|count| *count > judged / 100),
            "the generator is one-sided: {fates:?}"
        );
    }

    /// When a bucket is due, as far as that is known from outside: nanoseconds of CLOCK_MONOTONIC.
    #[derive(Debug, Clone, Copy, Default)]
    struct Due {
        earliest: u64,
        latest: u64,
    }

    impl Due {
        /// The reference of `--limit`, the generic cell rate algorithm: a packet that was sent between these two times
        /// passed or did not. Says whether it had to be so, or could be either; fails if it could not be.
        fn judge(&mut self, sent: (u64, u64), passed: bool, limit: Limit) -> bool {
            let (interval, tolerance) = (limit.interval_ns(), limit.tolerance_ns());
            let must_pass = self.latest <= sent.0 + tolerance;
            let must_not = self.earliest > sent.1 + tolerance;
            assert!(passed || !must_pass, "{self:?} {sent:?}");
            assert!(!passed || !must_not, "{self:?} {sent:?}");
            if passed {
                self.earliest = self.earliest.max(sent.0) + interval;
                self.latest = self.latest.max(sent.1).min(sent.1 + tolerance) + interval;
            } else {
                self.earliest = self.earliest.max(sent.0 + tolerance);
            }
            must_pass || must_not
        }
    }

    #[test]
    fn who_sends_too_fast_is_limited_as_the_reference_says() {
        let packets = if std::env::var_os("EBPFKIT_VM").is_some() {
            2_000
        } else {
            20_000
        };
        let now = || {
            let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
            u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).unwrap()
        };
        let mut dice = Dice(0x6c69_6d69);
        let all = [
            ("192.0.2.1", false),
            ("192.0.2.2", false),
            ("2001:db8::3", false),
            ("192.0.2.4", true),
        ];
        for limit in ["1/s", "70/s", "2000/s", "50000/s"] {
            let limit: Limit = limit.parse().unwrap();
            let rule = |(address, audit): (&str, bool)| Rule {
                endpoints: vec![address.parse().unwrap()],
                users: vec![Subject::from("0")],
                mode: if audit { Mode::Audit } else { Mode::Enforce },
                ..Rule::default()
            };
            let policy = Policy {
                rules: all.into_iter().map(rule).collect(),
                limit: Some(limit),
                ..Policy::default()
            };
            let guard = guard(&Plan::new(&policy, None).unwrap());
            let mut buckets = [Due::default(); 3];
            let (mut certain, mut limited) = (0, 0);
            for _ in 0..packets {
                let which = dice.below(all.len());
                let frame = packet(all[which].0, 17, dice.pick(&[53, 9000])).frame();
                let before = now();
                let passed = fate(&guard, &frame) == Fate::Passes;
                let Some(bucket) = buckets.get_mut(which) else {
                    assert!(passed, "what is only audited");
                    continue;
                };
                certain += u32::from(bucket.judge((before, now()), passed, limit));
                limited += u32::from(!passed);
            }
            // However slow the machine is, this is not about doubtful ones alone.
            assert!(certain > packets / 10, "{limit}: {certain} of {packets}");
            assert!(limited > 0 || limit.interval_ns() < 1_000_000, "{limit}");
        }
    }

    /// A packet to `dst`, complete and unremarkable.
    fn packet(dst: &str, protocol: u8, dport: u16) -> Crafted {
        Crafted {
            tags: Vec::new(),
            dst: dst.parse().unwrap(),
            options: 0,
            extensions: Vec::new(),
            fragment: 0,
            protocol,
            dport,
            flags: 0x18,
            payload: 20,
            lie: 0,
            cut: None,
            flip: None,
        }
    }

    /// What becomes of a frame that leaves.
    fn fate(guard: &Guard, frame: &[u8]) -> Fate {
        Fate::of(frame, &guard.test_run(Hook::EgressEth, frame, 1).unwrap())
    }

    fn closed_fate(crafted: &Crafted) -> Fate {
        let guard = guard(&plan(false));
        fate(&guard, &crafted.frame())
    }

    #[test]
    fn an_ipv6_packet_is_judged_by_its_own_destination() {
        assert_eq!(closed_fate(&packet("fd00:ec2::254", 6, 80)), Fate::Answered);
        assert_eq!(closed_fate(&packet("fd00:ec2::255", 6, 80)), Fate::Passes);
    }

    #[test]
    fn a_prefix_shorter_than_the_address_guards_its_whole_network() {
        assert_eq!(
            closed_fate(&packet("10.1.255.255", 6, 1000)),
            Fate::Answered
        );
        assert_eq!(closed_fate(&packet("10.2.0.0", 6, 1000)), Fate::Passes);
        assert_eq!(
            closed_fate(&packet("fd00:5:ffff::1", 17, 443)),
            Fate::Answered
        );
    }

    #[test]
    fn an_endpoint_inside_another_keeps_the_rules_of_both() {
        assert_eq!(closed_fate(&packet("10.1.2.3", 17, 53)), Fate::Answered);
        assert_eq!(closed_fate(&packet("10.1.2.3", 6, 1500)), Fate::Answered);
        assert_eq!(closed_fate(&packet("10.1.2.3", 6, 53)), Fate::Passes);
    }

    /// Who sends such writes the frame itself, and nobody but what is on the way takes the packet out of it.
    #[test]
    fn what_is_in_a_frame_of_another_kind_passes() {
        let guard = guard(&plan(false));
        let inner = packet("169.254.169.254", 6, 80).frame();
        assert_eq!(fate(&guard, &inner), Fate::Answered);
        let (addresses, network) = (&inner[..12], &inner[14..]);
        for (what, front) in [
            ("MPLS (RFC 3032)", &[0x88, 0x47, 0, 0, 0x11, 64][..]),
            (
                "PPPoE (RFC 2516)",
                &[0x88, 0x64, 0x11, 0, 0, 1, 0, 62, 0, 0x21],
            ),
            (
                "LLC and SNAP (RFC 1042)",
                &[0, 68, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0],
            ),
            (
                "a network service header (RFC 8300)",
                &[0x89, 0x4f, 0, 2, 0, 1, 0, 0, 0, 0],
            ),
        ] {
            let frame = [addresses, front, network].concat();
            assert_eq!(fate(&guard, &frame), Fate::Passes, "{what}");
        }
    }

    #[test]
    fn dns_on_the_same_address_stays_open() {
        assert_eq!(
            closed_fate(&packet("169.254.169.254", 17, 53)),
            Fate::Passes
        );
        assert_eq!(closed_fate(&packet("169.254.169.254", 6, 53)), Fate::Passes);
    }

    #[test]
    fn a_vlan_tag_in_the_frame_hides_nothing() {
        for tags in [vec![0x8100], vec![0x9100], vec![0x88a8, 0x8100]] {
            let tagged = Crafted {
                tags,
                ..packet("169.254.169.254", 6, 80)
            };
            assert_eq!(closed_fate(&tagged), Fate::Answered);
        }
    }

    #[test]
    fn a_third_vlan_tag_is_refused_wherever_it_goes() {
        for tags in [3, 4] {
            for dst in ["169.254.169.254", "8.8.8.8"] {
                let tagged = Crafted {
                    tags: vec![0x8100; tags],
                    ..packet(dst, 6, 80)
                };
                assert_eq!(closed_fate(&tagged), Fate::Dropped);
            }
        }
        let audit = Policy {
            mode: Mode::Audit,
            ..Policy::of(&endpoints(), &[])
        };
        let guard = guard(&Plan::new(&audit, None).unwrap());
        let tagged = Crafted {
            tags: vec![0x88a8; 3],
            ..packet("169.254.169.254", 6, 80)
        };
        assert_eq!(fate(&guard, &tagged.frame()), Fate::Passes);
        assert_eq!(guard.summary(false, 1).unwrap().would_deny, 1);
    }

    #[test]
    fn extension_headers_hide_nothing() {
        let hidden = Crafted {
            extensions: vec![(0, 0), (60, 1)],
            ..packet("fd00:ec2::254", 6, 80)
        };
        assert_eq!(closed_fate(&hidden), Fate::Dropped);
        let too_many = Crafted {
            extensions: vec![(60, 0); 9],
            ..packet("fd00:ec2::254", 6, 80)
        };
        assert_eq!(closed_fate(&too_many), Fate::Dropped);
    }

    #[test]
    fn a_fragment_without_ports_is_kept_back() {
        let later = Crafted {
            fragment: 1,
            ..packet("169.254.169.254", 6, 53)
        };
        assert_eq!(closed_fate(&later), Fate::Dropped);
        let of_dns = Crafted {
            protocol: 17,
            ..later
        };
        assert_eq!(closed_fate(&of_dns), Fate::Passes);
    }

    #[test]
    fn what_one_rule_opens_does_not_open_a_fragment_that_may_be_for_another() {
        let rule = |endpoint: &str, user: &str| Rule {
            endpoints: vec![endpoint.parse().unwrap()],
            users: vec![Subject::from(user)],
            ..Rule::default()
        };
        let policy = |rules: Vec<Rule>| Policy {
            rules,
            ..Policy::default()
        };
        let fate_by = |policy: &Policy, fragment, extensions| {
            let packet = Crafted {
                fragment,
                extensions,
                ..packet("2001:db8::1", 6, 9001)
            };
            let guard = guard(&Plan::new(policy, None).unwrap());
            fate(&guard, &packet.frame())
        };
        let open = "[2001:db8::1]:9001/tcp";
        let closed = policy(vec![
            rule(open, "0"),
            rule("[2001:db8::1]:9002/tcp", "54321"),
        ]);
        let later = || vec![(44, 0)];
        let too_many = || vec![(60, 0); 9];
        assert_eq!(fate_by(&closed, 0, Vec::new()), Fate::Passes);
        assert_eq!(fate_by(&closed, 8, later()), Fate::Dropped);
        assert_eq!(fate_by(&closed, 0, too_many()), Fate::Dropped);
        // Another protocol's ports are not those of a fragment of this one.
        let apart = policy(vec![
            rule(open, "0"),
            rule("[2001:db8::1]:9002/udp", "54321"),
        ]);
        assert_eq!(fate_by(&apart, 8, later()), Fate::Passes);
        assert_eq!(fate_by(&apart, 0, too_many()), Fate::Dropped);
        let of_all = policy(vec![
            rule("2001:db8::1", "0"),
            rule("[2001:db8::1]:9002/tcp", "54321"),
        ]);
        assert_eq!(fate_by(&of_all, 8, later()), Fate::Passes);
        assert_eq!(fate_by(&of_all, 0, too_many()), Fate::Passes);
    }

    #[test]
    fn a_reset_that_carries_nothing_passes() {
        let reset = Crafted {
            flags: 0x14,
            payload: 0,
            ..packet("169.254.169.254", 6, 80)
        };
        assert_eq!(closed_fate(&reset), Fate::Passes);
        let laden = Crafted {
            payload: 1,
            ..reset
        };
        assert_eq!(closed_fate(&laden), Fate::Answered);
    }

    #[test]
    fn a_policy_is_replaced_however_full_the_table_of_reports_is() {
        let mut guard = guard(&plan(false));
        let held = guard.held();
        let (_, reports) = held.iter().find(|(name, _)| name == "reports").unwrap();
        let id = reports.try_clone_to_owned().unwrap();
        // struct guard_key: uids of one endpoint, denied.
        let mut filled = 0_u32;
        for uid in 0..40_000_u32 {
            let mut key = [0_u8; 24];
            key[8..12].copy_from_slice(&uid.to_ne_bytes());
            key[18] = 1;
            let value = [0_u8; 16];
            #[allow(unsafe_code)]
            // SAFETY: a key and a value of the map's sizes.
            let ret = unsafe {
                libbpf_rs::libbpf_sys::bpf_map_update_elem(
                    id.as_raw_fd(),
                    key.as_ptr().cast(),
                    value.as_ptr().cast(),
                    0,
                )
            };
            filled += u32::from(ret == 0);
        }
        assert!(filled > 30_000 && filled < 40_000, "{filled}");
        for _ in 0..3 {
            let next = guard.prepare(&plan(true), None).unwrap();
            guard.switch(next).unwrap();
        }
        // Who comes now is counted, if not apart.
        let stranger = guard.prepare(&plan(false), None).unwrap();
        guard.switch(stranger).unwrap();
        let denied = packet("169.254.169.254", 6, 80);
        assert_eq!(fate(&guard, &denied.frame()), Fate::Answered);
        let told = guard.reports().unwrap();
        let others = told.iter().filter(|(key, _)| key.reason == Reason::Others);
        assert_eq!(others.map(|(_, total)| total).sum::<u64>(), 1);

        // All that was told of makes room.
        let mut dropped = 0;
        guard.make_room(|_, _| true, |_| dropped += 1).unwrap();
        assert_eq!(dropped, filled);
        assert_eq!(guard.reports().unwrap().len(), 3);
    }

    #[test]
    fn names_of_protocols_agree_with_their_numbers() {
        assert_eq!((Protocol::Tcp as u8, Protocol::Udp as u8), (6, 17));
    }
}
