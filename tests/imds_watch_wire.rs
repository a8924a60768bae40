// SPDX-License-Identifier: BSD-2-Clause

//! imds-watch on the real kernel: what is on the wire is told about where it is not what a look at the
//! packet shows.

mod common;

mod root {
    use std::collections::BTreeSet;
    use std::process::Command;

    use serde_json::{Value, json};

    use crate::common::{
        ALICE, Ended, IMDS4, MACHINE4, MetadataService, Netns, Network, TOKEN, Tool, python3, sh,
    };

    /// Whether this kernel lets a filter see what a packet's bytes are kept in (6.2).
    fn shows_pages() -> bool {
        let symbols = std::fs::read_to_string("/proc/kallsyms").expect("/proc");
        let shows = symbols.contains(" bpf_rdonly_cast");
        if !shows {
            eprintln!("not tried, as on this kernel nobody can tell");
        }
        shows
    }

    /// Sends one of two requests in the way that its argument says, and has written the other one over it before it
    /// reads an answer.
    const OVERWRITE: &str = r#"
import mmap, os, socket, sys
how, at, token, order = sys.argv[1:]
head = ' HTTP/1.1\r\nHost: ' + at + '\r\n'
clean = 'GET /latest/meta-data/instance-id' + head + 'X-aws-ec2-metadata-token: ' + token + '\r\n\r\n'
evil = 'GET /latest/user-data' + head + 'A: '
evil += 'a' * (len(clean) - len(evil) - 4) + '\r\n\r\n'
first, then = [clean.encode(), evil.encode()][::int(order)]
file = os.memfd_create('x')
os.ftruncate(file, 4096)
page = mmap.mmap(file, 4096)
for _ in range(3):
    stream = socket.create_connection((at, 80), 20)
    page[:len(first)] = first
    if how == 'sendfile':
        os.sendfile(stream.fileno(), file, 0, len(first))
    elif how == 'zerocopy':
        stream.setsockopt(socket.SOL_SOCKET, 60, 1)
        stream.send(memoryview(page)[:len(first)], 0x4000000)
    else:
        stream.send(page[:len(first)])
    page[:len(then)] = then
    assert stream.recv(99)
"#;

    fn overwritten(how: &str, order: &str, args: &[&str]) -> Ended {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let tool = Tool::start(
            &network.machine,
            &[&["imds-watch", "--cloud", "aws"], args].concat(),
        );
        let mut command = network.machine.command_as(ALICE, python3());
        sh(command.args(["-c", OVERWRITE, how, IMDS4, TOKEN, order]));
        assert_eq!(service.requests().len(), 3);
        tool.stop()
    }

    #[test]
    fn a_request_that_its_sender_can_still_overwrite_is_never_a_clean_one() {
        let plain = overwritten("send", "1", &[]);
        assert_eq!(plain.kind("request").len(), 0, "{plain:#?}");
        assert_eq!(plain.summary()["clean"], 3, "{plain:#?}");
        if !shows_pages() {
            return;
        }
        for how in ["sendfile", "zerocopy"] {
            for order in ["1", "-1"] {
                let ended = overwritten(how, order, &[]);
                let told = ended.kind("request");
                let unparsable = |event: &&&Value| event["findings"].to_string().contains("unp");
                assert_eq!(
                    told.iter().filter(unparsable).count(),
                    3,
                    "{how} {ended:#?}"
                );
                assert_eq!(ended.summary()["clean"], 0, "{how} {ended:#?}");
                let ended = overwritten(how, order, &["--summary"]);
                let verdict = ended.kind("verdict")[0];
                assert_eq!(verdict["safe"], false, "{how} {verdict}");
                let reasons = verdict["reasons"].to_string();
                assert!(
                    reasons.contains("3 requests could not be"),
                    "{how} {reasons}"
                );
            }
        }
    }

    /// `tell(tags, protocol, port)` sends a frame with a request from a port to the service, behind so many tags that
    /// name no VLAN, as one of that protocol; `paged` makes it long, and puts all but its link header into pages.
    const FRAMES: &str = r#"
import socket, struct, sys
link, at, mine = sys.argv[1:4]
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
long = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
long.setsockopt(263, 15, 1)
EVIL = b'GET /latest/user-data HTTP/1.1\r\n\r\n'
CLEAN = b'GET /latest/ HTTP/1.1\r\nX-aws-ec2-metadata-token: t\r\n\r\n'
def tell(tags, protocol, port, tag=b'\x81\0\0\0', to=None, text=EVIL, paged=False):
    to = to or at
    tcp = struct.pack('!HHIIBBHHH', port, 80, 1, 1, 0x50, 0x18, 1024, 0, 0) + text
    if ':' in to:
        kind, ends = b'\x86\xdd', [socket.inet_pton(socket.AF_INET6, one) for one in ('fd00:213::2', to)]
        ip = struct.pack('!IHBB', 0x60000000, len(tcp), 6, 64) + ends[0] + ends[1]
    else:
        kind, ends = b'\x08\0', [socket.inet_aton(one) for one in (mine, to)]
        ip = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(tcp), 7, 0, 64, 6, 0) + ends[0] + ends[1]
    macs = bytes.fromhex(link.replace(':', '')) + b'\2\0\0\0\0\1'
    frame = macs + tag * tags + kind + ip + tcp
    if paged:
        # A page at least, or all of it is in one piece: what is behind IP's length is padding.
        head = struct.pack('=BBHHHH', 0, 0, 14, 0, 0, 0)
        long.sendto(head + frame + bytes(8000 - len(frame)), ('eth0', protocol))
    else:
        raw.sendto(frame, ('eth0', protocol))
"#;

    /// Runs `calls` of `tell()` on the machine.
    fn send_frames(network: &Network, calls: &str) {
        let shown = network.cloud.ip(&["-br", "link", "show", "eth0"]);
        let link = shown.split_whitespace().nth(2).expect("a link address");
        let mut command: Command = network.machine.command(python3());
        let program = format!("{FRAMES}{calls}");
        sh(command.args(["-c", &program, link, IMDS4, MACHINE4]));
    }

    fn is_whole(event: &Value) -> bool {
        event["path"] == "/latest/user-data" && event["findings"].to_string().contains("imdsv1")
    }

    fn ports<'e>(told: impl Iterator<Item = &'e &'e Value>) -> BTreeSet<u64> {
        told.filter_map(|event| event["src"].as_str()?.rsplit(':').next()?.parse().ok())
            .collect()
    }

    #[test]
    fn tags_hide_no_request_that_comes_in_however_many_there_are() {
        let network = Network::new();
        let tool = Tool::start(
            &network.cloud,
            &["imds-watch", "--cloud", "aws", "-i", "eth0"],
        );
        send_frames(
            &network,
            "for n in range(12): tell(n, 0x8100 if n else 0x0800, 1000 + n)\n",
        );
        tool.wait("twelve requests", |tool| tool.count("request") >= 12);
        let ended = tool.stop();
        let told = ended.kind("request");
        let whole = ports(told.iter().filter(|event| is_whole(event)));
        // One is taken off, and eight are looked behind.
        assert_eq!(whole, (1000..=1009).collect(), "{ended:#?}");
        let unread: Vec<_> = told.iter().filter(|event| !is_whole(event)).collect();
        assert_eq!(unread.len(), 2, "{ended:#?}");
        for event in unread {
            assert_eq!(event["findings"], json!(["unparsable"]));
            assert!(event.get("dst").is_none(), "{event}");
        }
        assert_eq!(ended.summary()["delivered"], 12, "{ended:#?}");
    }

    #[test]
    fn a_frame_that_leaves_as_one_of_another_kind_is_not_hidden() {
        let network = Network::new();
        let tool = Tool::start(
            &network.machine,
            &["imds-watch", "--cloud", "aws", "-i", "eth0"],
        );
        send_frames(
            &network,
            concat!(
                // With tags that the sender does not tell of.
                "tell(1, 0x0800, 1001); tell(2, 0x0800, 1002); tell(3, 0x0806, 1003)\n",
                "tell(1, 0x86dd, 1004, b'\\x88\\xa8\\0\\x07'); tell(1, 0x0806, 1005, b'\\x81\\0\\x45\\0')\n",
                // And those of which it does.
                "tell(1, 0x8100, 1006); tell(2, 0x88a8, 1007)\n",
                // Without the tag that it tells of.
                "tell(0, 0x8100, 2001); tell(0, 0x88a8, 2002); tell(0, 0x8100, 2003, to='fd00:ec2::254')\n",
                // What concerns nobody goes, whatever is said of it.
                "tell(0, 0x8100, 3001, to='10.213.0.9'); tell(1, 0x0800, 3002, to='10.213.0.9')\n",
                "tell(0, 0x0800, 1008)\n",
            ),
        );
        tool.wait("the last request", |tool| tool.count("request") >= 11);
        let ended = tool.stop();
        let told = ended.kind("request");
        let whole = ports(told.iter().filter(|event| is_whole(event)));
        assert_eq!(whole, (1001..=1008).collect(), "{ended:#?}");
        let unread: Vec<_> = told.iter().filter(|event| !is_whole(event)).collect();
        assert_eq!(unread.len(), 3, "{ended:#?}");
        for event in unread {
            assert_eq!(event["findings"], json!(["unparsable"]));
        }
        assert_eq!(ended.summary()["delivered"], 11, "{ended:#?}");
    }

    #[test]
    fn what_is_not_in_the_first_piece_of_a_packet_is_read_as_well() {
        let network = Network::new();
        for side in [&network.machine, &network.cloud] {
            side.ip(&["link", "set", "eth0", "mtu", "9000"]);
        }
        let tool = Tool::start(
            &network.machine,
            &["imds-watch", "--cloud", "aws", "-i", "eth0"],
        );
        send_frames(
            &network,
            concat!(
                "v6 = 'fd00:ec2::254'\n",
                "tell(0, 0x0800, 1, text=CLEAN, paged=True)\n",
                "tell(0, 0x86dd, 2, text=CLEAN, paged=True, to=v6)\n",
                "tell(1, 0x8100, 3, text=CLEAN, paged=True)\n",
                "tell(0, 0x0800, 4, paged=True, to='10.213.0.9')\n",
                "tell(0, 0x86dd, 5, paged=True, to='fd00:213::9')\n",
                "tell(0, 0x0800, 1001, paged=True)\n",
                "tell(0, 0x86dd, 1002, paged=True, to=v6)\n",
                "tell(1, 0x0800, 1003, paged=True)\n",
                "tell(2, 0x8100, 1004, paged=True)\n",
                // Their header is in front of what is seen, and cannot be read: nobody knows where they go.
                "tell(0, 0x8100, 2001, paged=True)\n",
                "tell(0, 0x8100, 2002, paged=True, to='10.213.0.9')\n",
            ),
        );
        tool.wait("six requests", |tool| tool.count("request") >= 6);
        let ended = tool.stop();
        let told = ended.kind("request");
        let whole = ports(told.iter().filter(|event| is_whole(event)));
        assert_eq!(whole, (1001..=1004).collect(), "{ended:#?}");
        assert_eq!(told.len(), 6, "{ended:#?}");
        let summary = ended.summary();
        assert_eq!(
            (&summary["clean"], &summary["delivered"]),
            (&json!(3), &json!(6))
        );
    }

    /// Nobody but the test sends anything in these namespaces: IPv6 and ARP are off.
    #[test]
    fn every_packet_is_counted_once() {
        let network = Network {
            machine: Netns::new(),
            cloud: Netns::new(),
        };
        let off = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; \
                   echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6";
        for side in [&network.machine, &network.cloud] {
            sh(side.command("sh").args(["-c", off]));
        }
        let peer = network.cloud.name();
        network.machine.batch(&format!(
            "link add eth0 type veth peer name eth0 netns {peer}\nlink set eth0 arp off up\n"
        ));
        network.cloud.batch("link set eth0 arp off up\n");
        let tool = Tool::start(
            &network.machine,
            &["imds-watch", "--cloud", "aws", "-i", "eth0"],
        );
        send_frames(
            &network,
            concat!(
                "for n in range(500):\n",
                "    tell(0, 0x0800, n + 1, to='10.213.0.9')\n",
                "    tell(0, 0x86dd, n + 1, to='fd00:213::9')\n",
                "    tell(0, 0x0806, n + 1, to='10.213.0.9')\n",
                "    tell(2, 0x8100, n + 1, to='10.213.0.9')\n",
                "    tell(0, 0x0800, n + 1, text=b'')\n",
                "    tell(n % 3, 0x8100 if n % 3 else 0x0800, n + 1000, text=CLEAN)\n",
                "    if n < 300: tell(n % 3, 0x8100 if n % 3 else 0x0800, n + 3000)\n",
            ),
        );
        tool.wait("all requests", |tool| tool.count("request") >= 300);
        let ended = tool.stop();
        let count = |name: &str| ended.summary()[name].as_u64().unwrap();
        assert_eq!(count("seen"), 500 * 6 + 300, "{:#?}", ended.summary());
        assert_eq!(count("clean"), 500);
        assert_eq!(count("delivered"), 300);
        assert_eq!(count("concerning"), 800);
        assert_eq!(count("requests"), 300);
        assert_eq!(count("lost"), 0);
    }
}
