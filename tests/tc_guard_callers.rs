// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard`: who may connect and send, with users, groups and cgroups at once, by real sockets, against a plain
//! function of the policy. (Test runs of packets, in `tc_guard_verdicts`, have sockets that nobody has connected.)

mod common;

mod root {
    use std::fmt::Write as _;
    use std::fs;
    use std::io::Write as _;
    use std::net::IpAddr;
    use std::path::PathBuf;
    use std::process::Stdio;

    use ebpfkit::endpoint::Endpoint;
    use ebpfkit::kernel::cgroup;
    use serde_json::{Value, json};

    use super::common::cgroups::Cgroups;
    use super::common::dice::Dice;
    use super::common::tc_guard::concerns;
    use super::common::{IMDS4, IMDS6, Network, Tool, python3};

    const ENDPOINTS: &[&str] = &[
        "169.254.169.254:80/tcp",
        "169.254.169.254:9000-9999",
        "[fd00:ec2::254]:80",
        "10.1.0.0/16:1000-2000",
        "10.1.2.0/24:53/udp",
        "192.0.2.7",
        "[fd00:5::]/32:443",
    ];
    const ADDRESSES: &[&str] = &[
        IMDS4,
        IMDS6,
        "10.1.0.1",
        "10.1.2.3",
        "192.0.2.7",
        "8.8.8.8",
        "fd00:5::1",
        "2001:db8::1",
        "::ffff:169.254.169.254",
    ];
    const PORTS: &[u16] = &[53, 80, 443, 1500, 9001];
    /// What endpoints are about.
    const CONCERNED: &[(&str, u16)] = &[
        (IMDS4, 80),
        (IMDS4, 9001),
        (IMDS6, 80),
        ("10.1.0.1", 1500),
        ("10.1.2.3", 53),
        ("192.0.2.7", 53),
        ("fd00:5::1", 443),
        ("::ffff:169.254.169.254", 9001),
    ];
    const UIDS: &[u32] = &[0, 2001, 2002, 2003, 4_000_000_000];
    const GIDS: &[u32] = &[0, 3001, 3002, 3003, 3004, 4_000_000_001];

    /// Places to be in: neither, or the one above the other.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Place {
        Outside,
        Parent,
        Child,
    }

    const PLACES: &[Place] = &[Place::Outside, Place::Parent, Place::Child];

    #[derive(Debug)]
    struct Rule {
        endpoints: Vec<Endpoint>,
        users: Vec<u32>,
        groups: Vec<u32>,
        cgroups: Vec<Place>,
        audit: bool,
    }

    #[derive(Debug)]
    struct Case {
        tcp: bool,
        maker: u32,
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
        address: IpAddr,
        port: u16,
    }

    fn some<T: Copy>(dice: &mut Dice, all: &[T], once_in: usize) -> Vec<T> {
        let chosen = all.iter().copied();
        chosen.filter(|_| dice.once_in(once_in)).collect()
    }

    fn rules(dice: &mut Dice) -> Vec<Rule> {
        let count = dice.pick(&[1, 3, 10]);
        let one = |_| Rule {
            endpoints: (0..=dice.below(2))
                .map(|_| dice.pick(ENDPOINTS).parse().unwrap())
                .collect(),
            users: some(dice, UIDS, 4),
            groups: some(dice, GIDS, 8),
            cgroups: some(dice, &PLACES[1..], 4),
            audit: dice.once_in(5),
        };
        (0..count).map(one).collect()
    }

    fn case(dice: &mut Dice) -> Case {
        let many = dice.once_in(20);
        let mut groups = some(dice, GIDS, 3);
        if many {
            // The last of many counts as well.
            groups.splice(0..0, 10_000..10_040);
        }
        let (mut address, mut port) = dice.pick(CONCERNED);
        if dice.once_in(4) {
            (address, port) = (dice.pick(ADDRESSES), dice.pick(PORTS));
        }
        Case {
            tcp: dice.once_in(3),
            maker: dice.pick(UIDS),
            uid: dice.pick(UIDS),
            gid: dice.pick(GIDS),
            groups,
            address: address.parse().unwrap(),
            port,
        }
    }

    /// Whether these rules let a user with these groups in this place send; `groups` of whoever connected.
    fn may(rules: &[&Rule], uid: u32, case: &Case, place: Place) -> bool {
        let groups = case.groups.iter().chain([&case.gid]);
        let within = |cgroup: &Place| {
            *cgroup == place || (*cgroup == Place::Parent && place == Place::Child)
        };
        let allowed = |rule: &&Rule| {
            rule.users.contains(&uid)
                || groups.clone().any(|gid| rule.groups.contains(gid))
                || rule.cgroups.iter().any(within)
        };
        rules.iter().any(allowed) || rules.iter().all(|rule| rule.audit)
    }

    /// The reference: what becomes of a call, where denials on the way are answered or not.
    fn expected(
        rules: &[Rule],
        answered: bool,
        case: &Case,
        made: Place,
        used: Place,
    ) -> &'static str {
        let protocol = if case.tcp { 6 } else { 17 };
        let to = case.address.to_canonical();
        let about: Vec<&Rule> = rules
            .iter()
            .filter(|rule| {
                let mut endpoints = rule.endpoints.iter();
                endpoints.any(|endpoint| concerns(endpoint, to, protocol, case.port))
            })
            .collect();
        // At the call it counts who makes it and where; on the way, who has made the socket, and where.
        if !may(&about, case.uid, case, used) {
            "refused"
        } else if !may(&about, case.maker, case, made) && (answered || !case.tcp) {
            "dropped"
        } else if case.tcp {
            "called"
        } else {
            "sent"
        }
    }

    fn toml(rules: &[Rule], answered: bool, cgroups: &Cgroups) -> String {
        let mut text = "interfaces = [\"eth0\"]\n".to_owned();
        if !answered {
            text.push_str("deny = \"drop\"\n");
        }
        for rule in rules {
            let endpoints: Vec<_> = rule.endpoints.iter().map(ToString::to_string).collect();
            let places: Vec<_> = rule
                .cgroups
                .iter()
                .map(|place| match place {
                    Place::Child => format!("{}/child", cgroups.path),
                    _ => cgroups.path.clone(),
                })
                .collect();
            writeln!(text, "[[rule]]\nendpoints = {endpoints:?}").unwrap();
            writeln!(text, "users = {:?}\ngroups = {:?}", rule.users, rule.groups).unwrap();
            writeln!(text, "cgroups = {places:?}").unwrap();
            if rule.audit {
                text.push_str("mode = \"audit\"\n");
            }
        }
        text
    }

    /// What processes are moved to a place by.
    fn procs(place: Place, cgroups: &Cgroups) -> PathBuf {
        let root = cgroup::mount().expect("cgroup2 is mounted");
        let path = match place {
            Place::Outside => {
                let own = fs::read_to_string("/proc/self/cgroup").unwrap();
                let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
                own.unwrap().to_owned()
            }
            Place::Parent => cgroups.path[1..].to_owned(),
            Place::Child => format!("{}/child", &cgroups.path[1..]),
        };
        root.join(path).join("cgroup.procs")
    }

    /// A policy and calls of all kinds, batch by batch; what became of them.
    fn try_policy(
        network: &Network,
        cgroups: &Cgroups,
        rules: &[Rule],
        answered: bool,
        batches: &[(Place, Place, Vec<Case>)],
    ) -> Vec<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("policy.toml");
        fs::write(&config, toml(rules, answered, cgroups)).unwrap();
        let config = config.to_str().unwrap();
        let guard = Tool::start(&network.machine, &["tc-guard", "run", "--config", config]);
        let mut command = network.machine.command(python3());
        command.args(["-c", include_str!("tc_guard_callers/callers.py")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        for (made, used, cases) in batches {
            let cases: Vec<Value> = cases
                .iter()
                .map(|case| {
                    json!({
                        "tcp": case.tcp, "maker": case.maker, "uid": case.uid, "gid": case.gid, "groups": case.groups,
                        "address": case.address.to_string(), "port": case.port,
                    })
                })
                .collect();
            let batch = json!({
                "made in": procs(*made, cgroups), "used in": procs(*used, cgroups),
                "home": procs(Place::Outside, cgroups), "cases": cases,
            });
            writeln!(input, "{batch}").unwrap();
        }
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let ended = guard.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let lines = String::from_utf8(output.stdout).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn callers_of_any_kind_are_judged_as_the_reference_says() {
        // An emulated machine takes fifty times as long.
        let (policies, batches, cases) = if std::env::var_os("EBPFKIT_VM").is_some() {
            (4, 4, 60)
        } else {
            (12, 20, 120)
        };
        let (network, cgroups) = (Network::new(), Cgroups::new());
        // Whoever is sent to need not be there.
        network.machine.ip(&["link", "set", "eth0", "arp", "off"]);
        let mut dice = Dice(0x6361_6c6c);
        let mut fates = std::collections::BTreeMap::new();
        for policy in 0..policies {
            let answered = policy % 2 == 0;
            let rules = rules(&mut dice);
            let batches: Vec<_> = (0..batches)
                .map(|_| {
                    let cases = (0..cases).map(|_| case(&mut dice)).collect();
                    (dice.pick(PLACES), dice.pick(PLACES), cases)
                })
                .collect();
            let seen = try_policy(&network, &cgroups, &rules, answered, &batches);
            assert_eq!(seen.len(), batches.len());
            for ((made, used, cases), seen) in batches.iter().zip(&seen) {
                assert_eq!(seen.len(), cases.len());
                for (case, seen) in cases.iter().zip(seen) {
                    let expected = expected(&rules, answered, case, *made, *used);
                    assert_eq!(
                        seen, expected,
                        "{case:?} made {made:?}, used {used:?}: {rules:#?}"
                    );
                    *fates.entry((case.tcp, expected)).or_insert(0) += 1;
                }
            }
        }
        let kinds = [
            (false, "refused"),
            (false, "dropped"),
            (false, "sent"),
            (true, "refused"),
            (true, "dropped"),
            (true, "called"),
        ];
        let enough = |fate| fates.get(fate).is_some_and(|count| *count >= 5);
        assert!(
            kinds.iter().all(enough),
            "the generator is one-sided: {fates:?}"
        );
    }
}
