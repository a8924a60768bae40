// SPDX-License-Identifier: BSD-2-Clause

//! imds-watch on the real kernel: what is on the wire is told about where it is not what a look at the
//! packet shows.

mod common;

mod root {
    use serde_json::Value;

    use crate::common::{ALICE, Ended, IMDS4, MetadataService, Network, TOKEN, Tool, python3, sh};

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
}
