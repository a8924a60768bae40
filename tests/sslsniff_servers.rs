// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff` and servers and clients as Debian has them, unpacked and not installed. Random payload of each
//! size passes between them, and is shown at both ends. They are fetched once; where that fails the test does. The
//! machines of tests/vm do without.

mod common;
#[path = "sslsniff/payload.rs"]
mod payload;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::fs;

    use serde_json::Value;
    use sha2::{Digest as _, Sha256};

    use super::common::{ALICE, Background, Ended, Tool, python3};
    use super::payload::container::{Container, folder_of, private_copy};
    use super::payload::{
        SIZES, are_in, clients, passed, payload_files, random, random_text, streams_by, streams_of,
    };
    use super::place::{OTHER_PORT, PORT, Peer, Place, nothing_is_lost};

    const OPENSSL: &str = "libssl.so.3";
    const GNUTLS: &str = "libgnutls.so.30";

    /// Watches the one library file, with room for all that passes at once.
    fn watch(place: &Place, library: &str) -> Tool {
        let args = ["sslsniff", "--lib", library, "--buffer", "128M"];
        Tool::start(&place.netns, &args)
    }

    /// Random payload of each size.
    fn payloads(kind: fn(usize, u32) -> Vec<u8>) -> Vec<Vec<u8>> {
        let sizes = SIZES.into_iter().zip(1..);
        sizes.map(|(size, seed)| kind(size, seed)).collect()
    }

    fn ended(tool: Tool) -> Ended {
        let ended = tool.stop();
        nothing_is_lost(&ended);
        ended
    }

    fn framed(start: &str, payload: &[u8], end: &str) -> Vec<u8> {
        [start.as_bytes(), payload, end.as_bytes()].concat()
    }

    /// Two programs of this name, one of which listens for one connection, and one of which sends what is in the file
    /// `sent` to the other, which writes what it gets to `got`: what passes is that and nothing else. A sender may end so
    /// that the end of it never arrives.
    fn a_pipe(comm: &str, listener: &str, client: &str) {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        let tool = watch(&place, container.library());
        let sent = payloads(random);
        let mut got = Vec::new();
        for payload in &sent {
            container.write("sent", payload);
            container.write("got", "");
            let mut server = container.serve(listener, PORT);
            container.run(client, b"");
            server.0.wait().unwrap();
            got.push(fs::read(container.file("got")).unwrap());
        }
        assert!(
            got.iter()
                .zip(&sent)
                .all(|(got, sent)| sent.starts_with(got))
        );
        got.retain(|bytes| !bytes.is_empty());
        assert!(!got.is_empty());
        let ended = ended(tool);
        for (direction, wanted) in [("write", sent), ("read", got)] {
            let streams = streams_of(&ended, comm, direction);
            let lengths: Vec<_> = streams.iter().map(Vec::len).collect();
            assert!(streams == wanted, "{listener} {direction}: {lengths:?}");
        }
    }

    #[test]
    fn socat_is_shown_byte_by_byte() {
        let listen = "OPENSSL-LISTEN:4433,bind=127.0.0.1,reuseaddr,cert=/test/pem,verify=0";
        let connect = "OPENSSL:127.0.0.1:4433,verify=0";
        let (from, to) = ("OPEN:/test/sent", "OPEN:/test/got,trunc");
        let socat = |from: &str, to: &str| format!("socat -u {from} {to}");
        a_pipe("socat", &socat(listen, to), &socat(from, connect));
        a_pipe("socat", &socat(from, listen), &socat(connect, to));
    }

    #[test]
    fn ncat_is_shown_byte_by_byte() {
        let listen = "ncat --ssl --ssl-cert /test/cert --ssl-key /test/key -l 127.0.0.1 4433";
        let connect = "ncat --ssl 127.0.0.1 4433";
        let send = |end: &str| format!("{end} --send-only </test/sent");
        let receive = |end: &str| format!("{end} --recv-only >/test/got");
        a_pipe("ncat", &receive(listen), &send(connect));
        // The sender ends without saying so, which the receiver takes for an error.
        let client = format!("{} || true", receive(connect));
        a_pipe("ncat", &send(listen), &client);
    }

    #[test]
    fn redis_is_shown_byte_by_byte() {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        let _server = container.serve(
            "redis-server --port 0 --tls-port 4433 --bind 127.0.0.1 --save '' --tls-auth-clients no \
             --tls-cert-file /test/cert --tls-key-file /test/key --tls-ca-cert-file /test/cert",
            PORT,
        );
        let tool = watch(&place, container.library());
        let payloads = payloads(random);
        let cli = "redis-cli --tls --insecure -p 4433";
        for payload in &payloads {
            assert_eq!(container.run(&format!("{cli} -x SET k"), payload), b"OK\n");
            let got = container.run(&format!("{cli} --raw GET k"), b"");
            assert!(got.strip_suffix(b"\n") == Some(payload));
        }
        let ended = ended(tool);
        let bulk = |payload: &Vec<u8>| framed(&format!("${}\r\n", payload.len()), payload, "\r\n");
        let frames: Vec<_> = payloads.iter().map(bulk).collect();
        passed(&ended, "redis-cli", "redis-server", &frames);
        passed(&ended, "redis-server", "redis-cli", &frames);
    }

    #[test]
    fn memcached_is_shown_byte_by_byte() {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        let _server = container.serve(
            "memcached -u root -l 127.0.0.1 -p 4433 -I 16m -m 128 -Z \
             -o ssl_chain_cert=/test/cert,ssl_key=/test/key",
            PORT,
        );
        let tool = watch(&place, container.library());
        let payloads = payloads(random);
        let mut frames = [Vec::new(), Vec::new()];
        for payload in &payloads {
            let size = payload.len();
            let asked = framed(
                &format!("set k 0 0 {size}\r\n"),
                payload,
                "\r\nget k\r\nquit\r\n",
            );
            let answer = framed(
                &format!("STORED\r\nVALUE k 0 {size}\r\n"),
                payload,
                "\r\nEND\r\n",
            );
            assert!(
                container.run("ncat --ssl 127.0.0.1 4433", &asked) == answer,
                "{size}"
            );
            frames[0].push(asked);
            frames[1].push(answer);
        }
        let ended = ended(tool);
        // The thread that serves.
        passed(&ended, "ncat", "mc-worker", &frames[0]);
        passed(&ended, "mc-worker", "ncat", &frames[1]);
    }

    #[test]
    fn mosquitto_is_shown_byte_by_byte() {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        let conf = "user root\nlistener 4433 127.0.0.1\ncertfile /test/cert\nkeyfile /test/key\n\
             allow_anonymous true\n";
        container.write("conf", conf);
        let _server = container.serve("mosquitto -c /test/conf", PORT);
        let tool = watch(&place, container.library());
        let payloads = payloads(random);
        let with = "-h 127.0.0.1 -p 4433 --cafile /test/cert --insecure -t topic";
        for payload in &payloads {
            container.write("sent", payload);
            container.run(&format!("mosquitto_pub {with} -r -q 1 -f /test/sent"), b"");
            // The broker has retained it.
            let got = container.run(&format!("mosquitto_sub {with} -C 1 -N"), b"");
            assert!(got == *payload);
        }
        let ended = ended(tool);
        passed(&ended, "mosquitto_pub", "mosquitto", &payloads);
        passed(&ended, "mosquitto", "mosquitto_sub", &payloads);
    }

    /// Of tests/sslsniff/unpacked.
    const POSTFIX_USER: u32 = 54322;
    const POSTFIX: &str = "\
        compatibility_level = 3.6\nqueue_directory = /test/queue\ndata_directory = /test/data\n\
        daemon_directory = /usr/lib/postfix/sbin\nshlib_directory = /usr/lib/postfix\n\
        mail_owner = postfix\nsetgid_group = postdrop\ndefault_privs = alice\n\
        maillog_file = /test/mail.log\nmaillog_file_prefixes = /test\n\
        myhostname = localhost\nmynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
        alias_maps =\nlocal_recipient_maps =\nmydestination =\ndefault_transport = discard:\n\
        message_size_limit = 0\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
        smtpd_tls_security_level = may\nsmtpd_tls_wrappermode = yes\nsmtpd_tls_session_cache_database =\n\
        smtpd_tls_cert_file = /test/cert\nsmtpd_tls_key_file = /test/key\n";
    /// Its services: name, type, private, unprivileged, chroot, wakeup, maximum, command.
    const POSTFIX_SERVICES: &str = "\
        127.0.0.1:4433 inet n - n - - smtpd\n\
        cleanup unix n - n - 0 cleanup\n\
        qmgr unix n - n 300 1 qmgr\n\
        rewrite unix - - n - - trivial-rewrite\n\
        tlsmgr unix - - n 1000? 1 tlsmgr\n\
        anvil unix - - n - 1 anvil\n\
        bounce unix - - n - 0 bounce\n\
        defer unix - - n - 0 bounce\n\
        discard unix - - n - - discard\n\
        postlog unix-dgram n - n - 1 postlogd\n";

    #[test]
    fn postfix_is_shown_byte_by_byte() {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        fs::create_dir(container.file("postfix")).unwrap();
        container.write("postfix/main.cf", POSTFIX);
        container.write("postfix/master.cf", POSTFIX_SERVICES);
        fs::create_dir(container.file("queue")).unwrap();
        let queues =
            "active incoming deferred defer bounce corrupt hold flush saved trace private public";
        for name in queues.split(' ') {
            folder_of(&container.file("queue").join(name), POSTFIX_USER);
        }
        fs::create_dir(container.file("queue/pid")).unwrap();
        folder_of(&container.file("data"), POSTFIX_USER);
        let line = "/usr/lib/postfix/sbin/master -c /test/postfix -d";
        let _server = container.serve(line, PORT);
        let tool = watch(&place, container.library());
        // Lines, as mail is made of.
        let mails: Vec<_> = payloads(random_text)
            .iter()
            .map(|text| text.chunks(70).collect::<Vec<_>>().join(&b"\r\n"[..]))
            .collect();
        let mut passing = [Vec::new(), Vec::new()];
        for mail in &mails {
            let start = "EHLO localhost\r\nMAIL FROM:<a@localhost>\r\nRCPT TO:<b@localhost>\r\nDATA\r\n\r\n";
            let asked = framed(start, mail, "\r\n.\r\nQUIT\r\n");
            let answer = container.run("ncat --ssl 127.0.0.1 4433", &asked);
            let text = String::from_utf8_lossy(&answer);
            assert!(
                text.contains("queued as") && text.contains("221 "),
                "{text}"
            );
            passing[0].push(asked);
            passing[1].push(answer);
        }
        let ended = ended(tool);
        passed(&ended, "ncat", "smtpd", &passing[0]);
        passed(&ended, "smtpd", "ncat", &passing[1]);
    }

    /// What `apache2` serves is in the folder `www`.
    const APACHE: &str = "\
        ServerName localhost\nPidFile /test/apache.pid\nErrorLog /dev/stderr\n\
        LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so\n\
        LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so\n\
        LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\n\
        Mutex posixsem\nListen 127.0.0.1:4433\nDocumentRoot /test/www\n\
        SSLEngine on\nSSLCertificateFile /test/cert\nSSLCertificateKeyFile /test/key\n";

    #[test]
    fn apache_is_shown_byte_by_byte() {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        fs::create_dir(container.file("www")).unwrap();
        container.write("conf", APACHE);
        let _server = container.serve("apache2 -X -f /test/conf", PORT);
        let tool = watch(&place, container.library());
        let payloads = payloads(random);
        for payload in &payloads {
            container.write("www/file", payload);
            let head = format!(
                "POST /file HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                payload.len()
            );
            let asked = framed(&head, payload, "");
            let answer = container.run("ncat --ssl 127.0.0.1 4433", &asked);
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
            assert!(answer.ends_with(&framed("\r\n\r\n", payload, "")));
        }
        let ended = ended(tool);
        let bodies: Vec<_> = payloads
            .iter()
            .map(|payload| framed("\r\n\r\n", payload, ""))
            .collect();
        passed(&ended, "ncat", "apache2", &bodies);
        passed(&ended, "apache2", "ncat", &bodies);
    }

    #[test]
    fn lynx_and_git_are_shown_byte_by_byte() {
        let place = Place::new();
        let container = Container::new(&place, GNUTLS);
        let info = container.file("www/a.git/info");
        fs::create_dir_all(&info).unwrap();
        let root = format!("location / {{ root {}/www; }}", place.dir.path().display());
        let _nginx = place.nginx_with(&root);
        let tool = watch(&place, container.library());
        container.write("lynx.cfg", "FORCE_SSL_PROMPT:YES\n");
        let payloads = payloads(random);
        for payload in &payloads {
            container.write("www/file", payload);
            let line = "lynx -cfg=/test/lynx.cfg -source https://127.0.0.1:4433/file";
            assert!(container.run(line, b"") == *payload);
        }
        let refs: String = (0..20_000)
            .map(|one| format!("{one:040x}\trefs/heads/branch{one}\n"))
            .collect();
        fs::write(info.join("refs"), &refs).unwrap();
        let line = "env GIT_SSL_NO_VERIFY=1 git ls-remote https://127.0.0.1:4433/a.git";
        assert!(container.run(line, b"") == refs.as_bytes());
        let ended = ended(tool);
        let body = |payload: &Vec<u8>| framed("\r\n\r\n", payload, "");
        let bodies: Vec<_> = payloads.iter().map(body).collect();
        are_in(&streams_of(&ended, "lynx", "read"), &bodies, "lynx");
        // It asks for more on the same connection.
        let bodies = [body(&refs.into_bytes())];
        are_in(
            &streams_of(&ended, "git-remote-http", "read"),
            &bodies,
            "git",
        );
    }

    /// Ends that are not watched, one of which sends each size to the other through a program that ends the one's TLS
    /// and makes the other's: it reads and writes each payload once.
    fn a_proxy(comm: &str, conf: &str, line: &str) {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        container.write("conf", conf);
        let _proxy = container.serve(line, PORT);
        let sizes = SIZES.map(|size| size.to_string());
        let sizes: Vec<_> = sizes.iter().map(String::as_str).collect();
        let mut server = place.server(&[&["serve", &place.pem(), OTHER_PORT], &sizes[..]].concat());
        let mut client = place.peer(&[&["send", PORT], &sizes[..]].concat());
        let tool = watch(&place, container.library());
        (0..2 * SIZES.len()).for_each(|_| client.go());
        let hashes = |peer: &mut Peer| -> Vec<String> {
            let lines = peer.rest().into_iter();
            lines
                .map(|line| line["sha256"].as_str().unwrap().to_owned())
                .collect()
        };
        let mut wanted = hashes(&mut client);
        assert_eq!(wanted, hashes(&mut server));
        wanted.sort();
        let ended = ended(tool);
        for direction in ["read", "write"] {
            let mut shown: Vec<String> = streams_of(&ended, comm, direction)
                .iter()
                .map(|stream| hex(&Sha256::digest(stream)))
                .collect();
            shown.sort();
            assert_eq!(shown, wanted, "{comm} {direction}");
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn haproxy_is_shown_byte_by_byte() {
        let conf = "defaults\n mode tcp\n timeout client 60s\n timeout server 60s\n timeout connect 60s\n\
             listen a\n bind 127.0.0.1:4433 ssl crt /test/pem\n server b 127.0.0.1:4434 ssl verify none\n";
        a_proxy("haproxy", conf, "haproxy -db -f /test/conf");
    }

    #[test]
    fn stunnel_is_shown_byte_by_byte() {
        let conf = "foreground = yes\npid =\n\
             [in]\naccept = 127.0.0.1:4433\nconnect = 127.0.0.1:4435\ncert = /test/cert\nkey = /test/key\n\
             [out]\nclient = yes\naccept = 127.0.0.1:4435\nconnect = 127.0.0.1:4434\n";
        a_proxy("stunnel4", conf, "stunnel4 /test/conf");
    }

    /// PostgreSQL, as the user that it wants to be.
    fn postgres(place: &Place, container: &Container<'_>) -> Background {
        let data = container.file("data");
        folder_of(&data, ALICE);
        let bin = "chroot --userspec=alice:alice / /usr/lib/postgresql/15/bin";
        container.run(
            &format!("{bin}/initdb -N -A trust --no-locale -E UTF8 -D /test/data"),
            b"",
        );
        for name in ["cert", "key"] {
            private_copy(&place.dir.path().join(name), &data.join(name), ALICE);
        }
        let settings = "-c ssl=on -c ssl_cert_file=cert -c ssl_key_file=key -c fsync=off";
        container.serve(
            &format!("{bin}/postgres -D /test/data -h 127.0.0.1 -p 4433 -k '' {settings}"),
            PORT,
        )
    }

    fn mariadb(container: &Container<'_>) -> Background {
        fs::create_dir(container.file("data")).unwrap();
        container.serve(
            "mariadbd --no-defaults --user=root --datadir=/test/data --socket=/test/socket --bind-address=127.0.0.1 \
             --port=4433 --ssl-cert=/test/cert --ssl-key=/test/key --skip-grant-tables --skip-innodb \
             --default-storage-engine=Aria --max-allowed-packet=64M --lc-messages-dir=/usr/share/mysql",
            PORT,
        )
    }

    /// Has a client ask a server for each text, which sends it back.
    fn texts_come_back(
        start: impl Fn(&Place, &Container<'_>) -> Background,
        (client, server): (&str, &str),
        line: &str,
    ) {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        let _server = start(&place, &container);
        let tool = watch(&place, container.library());
        let payloads = payloads(random_text);
        for payload in &payloads {
            let got = container.run(line, &framed("SELECT '", payload, "';\n"));
            assert!(got.strip_suffix(b"\n") == Some(payload));
        }
        let ended = ended(tool);
        let asked: Vec<_> = payloads
            .iter()
            .map(|payload| framed("SELECT '", payload, "'"))
            .collect();
        passed(&ended, client, server, &asked);
        passed(&ended, server, client, &payloads);
    }

    #[test]
    fn postgresql_and_libpq_are_shown_byte_by_byte() {
        texts_come_back(
            postgres,
            ("psql", "postgres"),
            "/usr/lib/postgresql/15/bin/psql -At \
             'host=127.0.0.1 port=4433 user=alice dbname=postgres sslmode=require'",
        );
    }

    #[test]
    fn mariadb_is_shown_byte_by_byte() {
        texts_come_back(
            |_, container| mariadb(container),
            ("mariadb", "mariadbd"),
            "mariadb --no-defaults --ssl --max-allowed-packet=64M -h 127.0.0.1 -P 4433 -NB",
        );
    }

    /// A client with a library of its own, of this name, that is in its file of symbols where that has any; it asks for each
    /// text, and gets it back.
    fn a_client_with_its_own_library(
        (what, library): (&str, &str),
        start: impl Fn(&Place, &Container<'_>) -> Background,
    ) {
        let place = Place::new();
        let container = Container::new(&place, OPENSSL);
        let _server = start(&place, &container);
        let payloads = payloads(random_text);
        let folder = payload_files(&place, &payloads);
        let mut client = bundled(&place, &[what, PORT, &folder]);
        let (tool, pid) = watch_process(&place, &client);
        client.go();
        client.rest();
        let ended = ended(tool);
        let of_library = |event: &&Value| event["library"].as_str().unwrap().contains(library);
        assert!(ended.kind("data").iter().all(of_library), "{ended:?}");
        let asked: Vec<_> = payloads
            .iter()
            .map(|payload| framed("SELECT '", payload, "'"))
            .collect();
        are_in(
            &streams_by(&ended, |of, _| of == pid, "write"),
            &asked,
            what,
        );
        are_in(
            &streams_by(&ended, |of, _| of == pid, "read"),
            &payloads,
            what,
        );
    }

    /// A client of bundled.py that has its library already.
    fn bundled(place: &Place, args: &[&str]) -> Peer {
        let mut command = place.netns.command(clients());
        command.args(["-c", include_str!("sslsniff/bundled.py")]);
        let mut client = Peer::start(command.args(args));
        assert_eq!(client.line(), "imported");
        client
    }

    fn watch_process(place: &Place, peer: &Peer) -> (Tool, u64) {
        let args = [
            "sslsniff",
            "-p",
            &peer.pid().to_string(),
            "--buffer",
            "128M",
        ];
        (Tool::start(&place.netns, &args), peer.pid().into())
    }

    #[test]
    fn openssl_that_psycopg2_brings_along_is_shown_byte_by_byte() {
        a_client_with_its_own_library(("postgres", "/psycopg2_binary.libs/libssl-"), postgres);
    }

    #[test]
    fn openssl_that_mysql_connector_brings_along_is_shown_byte_by_byte() {
        let start = |_: &Place, container: &Container<'_>| mariadb(container);
        a_client_with_its_own_library(("mysql", "/mysql/vendor/libssl.so"), start);
    }

    /// Its functions are in `.symtab` alone. The server is none of Kafka's: what it answers is random.
    #[test]
    fn openssl_inside_of_confluent_kafka_is_shown_byte_by_byte() {
        let place = Place::new();
        let payloads = payloads(random);
        let folder = payload_files(&place, &payloads);
        let name = random_text(20_000, 9);
        fs::write(place.dir.path().join("name"), &name).unwrap();
        let mut command = place.netns.command(python3());
        command.args([
            "-c",
            include_str!("sslsniff/kafka_end.py"),
            &place.pem(),
            PORT,
            &folder,
        ]);
        let mut server = Peer::start(&mut command);
        assert_eq!(server.line(), "listening");
        let name_file = place.dir.path().join("name").display().to_string();
        let mut client = bundled(&place, &["kafka", PORT, &name_file]);
        let (tool, pid) = watch_process(&place, &client);
        client.go();
        server.rest();
        client.go();
        client.rest();
        let ended = ended(tool);
        let library = ended.kind("data")[0]["library"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(library.contains("/librdkafka-"), "{library}");
        let length = u16::try_from(name.len()).unwrap().to_be_bytes();
        let named = [length.as_slice(), &name].concat();
        are_in(
            &streams_by(&ended, |of, _| of == pid, "write"),
            &[named],
            "kafka",
        );
        are_in(
            &streams_by(&ended, |of, _| of == pid, "read"),
            &payloads,
            "kafka",
        );
    }
}
