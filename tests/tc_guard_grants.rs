// SPDX-License-Identifier: BSD-2-Clause

//! What `ebpfkit tc-guard` remembers of a socket that was allowed something, and what it does not take for the same.

mod common;

mod root {
    use std::fs;
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;

    use super::common::{BOB, Background, IMDS4, MACHINE4, Network, Tool, python3, sh};

    /// Prints what is in each IPv4 packet to the service that arrives: the letters in it.
    const SERVICE: &str = r#"
import re, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800))
s.bind(('eth0', 0))
s.settimeout(60)
print('listening', flush=True)
while True:
    packet = s.recv(65536)
    if packet[16:20] != socket.inet_aton(sys.argv[1]):
        continue
    said = re.search(rb'[a-z ]{3,}', packet)
    print(said[0].decode() if said else packet.hex(), flush=True)
    if said and said[0] == b'the end':
        break
"#;

    /// Sends to a port that is open to it, and then what is not for that port, though something of it looks so.
    const SENDER: &str = r#"
import socket, struct, sys
to, own, open, closed = sys.argv[1], sys.argv[2], 257, 8002
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def send(said, port):
    try: u.sendto(said, (to, port))
    except OSError: pass
send(b'open', open)
send(b'another port', closed)
# Options that read as the open port, where there are ports without them: four times "no operation".
u.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([1] * 4))
send(b'behind options', closed)
u.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b'')
r = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def raw(fragment, what):
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(what), 7, fragment, 64, 17, 0,
        socket.inet_aton(own), socket.inet_aton(to))
    try: r.sendto(head + what, (to, 0))
    except OSError: pass
def udp(port, what):
    return struct.pack('!HHHH', 999, port, 8 + len(what), 0) + what
raw(0, udp(open, b'raw and open'))
raw(0, udp(closed, b'raw to another port'))
# The rest of a datagram to whatever port its first fragment names; it begins with what reads as the open one.
raw(185, bytes([1] * 8) + b'a fragment')
send(b'open again', open)
send(b'the end', open)
"#;

    #[test]
    fn what_a_socket_was_allowed_opens_nothing_else_to_it() {
        let network = Network::new();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("guard.toml");
        let policy = format!(
            "deny = \"drop\"\n\
             [[rule]]\nendpoints = [\"{IMDS4}:257/udp\"]\nusers = [\"{BOB}\"]\n\
             [[rule]]\nendpoints = [\"{IMDS4}:8002/udp\"]\nusers = [\"root\"]\n"
        );
        fs::write(&config, policy).unwrap();
        let config = config.to_str().unwrap();
        let args = ["tc-guard", "run", "--packets-only", "--config", config];
        let guard = Tool::start(&network.machine, &args);

        let mut service = network.cloud.command(python3());
        let piped = service.args(["-c", SERVICE, IMDS4]).stdout(Stdio::piped());
        let mut service = Background(piped.spawn().unwrap());
        let mut heard = BufReader::new(service.0.stdout.take().unwrap()).lines();
        assert_eq!(heard.next().unwrap().unwrap(), "listening");
        let mut sender = network
            .machine
            .command_with(BOB, "-all,+net_raw", python3());
        sh(sender.args(["-c", SENDER, IMDS4, MACHINE4]));
        let heard: Vec<_> = heard.map_while(Result::ok).collect();
        assert_eq!(heard, ["open", "raw and open", "open again", "the end"]);
        guard.stop();
    }
}
