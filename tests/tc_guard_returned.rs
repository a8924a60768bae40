// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard` and packets that come back: veth and macvlan leave a packet its socket, so a container that sends
//! back what the machine sent to it, with another packet written over it, has the machine's own socket at hand. Who can
//! do so is root in its own network namespace alone (`tc … action pedit`, `nft … fwd to`).

mod common;

mod root {
    use ebpfkit::kernel::tc::Side;
    use serde_json::Value;

    use super::common::cgroups::Cgroups;
    use super::common::classifier::{Attached, instruction};
    use super::common::{Ended, IMDS4, Netns, Network, Tool, python3, sh};

    const PORT: u16 = 9999;
    /// The two ends of the container's link.
    const HERE: &str = "10.217.0.1";
    const CONTAINER: &str = "10.217.0.2";

    fn guard(network: &Network, args: &[&str]) -> Tool {
        let endpoint = format!("{IMDS4}:{PORT}/udp");
        let mut all = vec!["tc-guard", "run", "--all", "--endpoint", &endpoint];
        all.extend(args);
        Tool::start(&network.machine, &all)
    }

    fn octets(address: &str) -> [u8; 4] {
        address.parse::<std::net::Ipv4Addr>().unwrap().octets()
    }

    /// Of an interface that may be in another namespace.
    fn mac(netns: &Netns, interface: &str) -> [u8; 6] {
        let found: Value =
            serde_json::from_str(&netns.ip(&["-j", "link", "show", interface])).unwrap();
        let text = found[0]["address"].as_str().unwrap().to_owned();
        let mut bytes = [0; 6];
        for (byte, part) in bytes.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(part, 16).unwrap();
        }
        bytes
    }

    /// Sends each packet of IPv4 that comes in back out, from the container to the metadata service; all else passes.
    fn sends_back(from: [u8; 6], to: [u8; 6]) -> Vec<u64> {
        let number = |bytes: [u8; 4]| i32::from_ne_bytes(bytes);
        // r6 = skb; r2 = *(u32 *)(skb + 16), its protocol; unless that is IPv4 return TC_ACT_UNSPEC
        let mut all = vec![
            instruction(0xbf, 0x16, 0, 0),
            instruction(0x61, 0x12, 16, 0),
            instruction(0x15, 2, 2, 0x0008),
            instruction(0xb7, 0, 0, -1),
            instruction(0x95, 0, 0, 0),
        ];
        // bpf_skb_store_bytes(skb, at, four bytes, 4, 0)
        let mut store = |at: i32, bytes: [u8; 4]| {
            all.extend([
                instruction(0x62, 10, 0xfff8, number(bytes)),
                instruction(0xbf, 0x61, 0, 0),
                instruction(0xb7, 2, 0, at),
                instruction(0xbf, 0xa3, 0, 0),
                instruction(0x07, 3, 0, -8),
                instruction(0xb7, 4, 0, 4),
                instruction(0xb7, 5, 0, 0),
                instruction(0x85, 0, 0, 9),
            ]);
        };
        store(0, [to[0], to[1], to[2], to[3]]);
        store(4, [to[4], to[5], from[0], from[1]]);
        store(8, [from[2], from[3], from[4], from[5]]);
        store(14 + 12, octets(CONTAINER));
        store(14 + 16, octets(IMDS4));
        // return bpf_redirect(skb->ifindex, 0)
        all.extend([
            instruction(0x61, 0x61, 40, 0),
            instruction(0xb7, 2, 0, 0),
            instruction(0x85, 0, 0, 23),
            instruction(0x95, 0, 0, 0),
        ]);
        all
    }

    /// What the machine sends to the container, as root.
    fn send(netns: &Netns) {
        let program = format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             for _ in range(5): s.sendto(b'x', ('{CONTAINER}', {PORT}))\n"
        );
        sh(netns.command(python3()).args(["-c", &program]));
    }

    /// They came back, and each was refused for what it is.
    fn all_are_refused(ended: &Ended) {
        let summary = ended.summary();
        assert_eq!(summary["denied"], 5, "{summary}");
        assert_eq!(summary["allowed"], 0, "{summary}");
        let reasons: Vec<_> = ended
            .kind("verdict")
            .iter()
            .map(|event| event["reason"].clone())
            .collect();
        assert!(
            reasons.iter().all(|reason| reason == "no-socket"),
            "{reasons:?}"
        );
    }

    #[test]
    fn what_a_container_sends_back_is_not_the_machine_s() {
        let network = Network::new();
        let container = Netns::new();
        let machine = &network.machine;
        let peer = [
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            container.name(),
        ];
        machine.ip(&[&["link", "add", "veth0"][..], &peer].concat());
        machine.ip(&["addr", "add", &format!("{HERE}/24"), "dev", "veth0"]);
        machine.ip(&["link", "set", "veth0", "up"]);
        container.ip(&["addr", "add", &format!("{CONTAINER}/24"), "dev", "eth0"]);
        container.ip(&["link", "set", "eth0", "up"]);
        let back = sends_back(mac(&container, "eth0"), mac(machine, "veth0"));
        let _back = Attached::at(c"sends_back", back, &container, "eth0", Side::Ingress);

        let by_user = guard(&network, &["--allow-user", "root"]);
        send(machine);
        all_are_refused(&by_user.stop());

        let cgroups = Cgroups::new();
        let by_cgroup = guard(&network, &["--allow-cgroup", &cgroups.path]);
        cgroups.inside("", || send(machine));
        all_are_refused(&by_cgroup.stop());
    }

    #[test]
    fn what_comes_back_by_a_macvlan_is_not_the_machine_s() {
        let network = Network::new();
        let container = Netns::new();
        let machine = &network.machine;
        if !machine.made("mv0", "link eth0 type macvlan mode bridge") {
            return;
        }
        let there = [
            "link",
            "add",
            "mv1",
            "link",
            "eth0",
            "netns",
            container.name(),
        ];
        machine.ip(&[&there[..], &["type", "macvlan", "mode", "bridge"]].concat());
        machine.ip(&["addr", "add", &format!("{HERE}/24"), "dev", "mv0"]);
        machine.ip(&["link", "set", "mv0", "up"]);
        container.ip(&["addr", "add", &format!("{CONTAINER}/24"), "dev", "mv1"]);
        container.ip(&["link", "set", "mv1", "up"]);
        let back = sends_back(mac(&container, "mv1"), mac(&network.cloud, "eth0"));
        let _back = Attached::at(c"sends_back", back, &container, "mv1", Side::Ingress);
        let guard = guard(&network, &["--allow-user", "root"]);
        send(machine);
        all_are_refused(&guard.stop());
    }
}
