// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff`: calls that few programs make, the ends of connections, and who may watch.

mod common;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::collections::HashSet;
    use std::os::fd::{FromRawFd as _, OwnedFd};
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use ebpfkit::kernel::features::Features;
    use ebpfkit::kernel::uprobes::Method;
    use ebpfkit::tools::sslsniff::function::Function;
    use ebpfkit::tools::sslsniff::symbols;
    use libbpf_rs::libbpf_sys;
    use libbpf_rs::query::ProgInfoIter;
    use nix::sys::signal::Signal;
    use serde_json::{Value, json};

    use super::common::{ALICE, Tool, copy_program, ebpfkit_path, python3, sh};
    use super::place::{CURL, PORT, Peer, Place, URL, bytes_of, nothing_is_lost};

    /// The client of calls.py, watched from before its first call until it has ended well.
    fn watched_calls(options: &[&str]) -> super::common::Ended {
        Place::new().watched_client(include_str!("sslsniff/calls.py"), options)
    }

    #[test]
    fn a_seccomp_filter_that_refuses_return_probes_ends_no_program() {
        assert_eq!(watched_calls(&["filter"]).kind("data").len(), 4);
    }

    /// How often the probes' programs that a process has loaded have run, while somebody asks the kernel to count.
    fn runs(pid: u32) -> u64 {
        let folder = format!("/proc/{pid}/fdinfo");
        let own: HashSet<u32> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
            .flat_map(|text| {
                let ids = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("prog_id:"));
                ids.map(|id| id.trim().parse().unwrap()).collect::<Vec<_>>()
            })
            .collect();
        // One for all functions, or, where probes have no cookies, one for each.
        let is_probe = |name: &str| {
            ["any_", "enter_", "leave_"]
                .iter()
                .any(|at| name.starts_with(at))
        };
        ProgInfoIter::default()
            .filter(|program| own.contains(&program.id))
            .filter(|program| program.name.to_str().is_some_and(is_probe))
            .map(|program| program.run_cnt)
            .sum()
    }

    #[test]
    fn the_returns_of_calls_that_nobody_watches_are_no_traps_where_the_kernel_can_do_that() {
        #[allow(unsafe_code)]
        // SAFETY: a number; the descriptor that it returns is ours.
        let _counting = unsafe {
            let fd = libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let place = Place::new();
        // A library that no other test calls.
        let script = "import _ssl\nprint(next(line.split()[-1] for line in open('/proc/self/maps') \
                      if 'libssl' in line))";
        let library = sh(Command::new(python3()).args(["-c", script]));
        let library = Path::new(library.trim());
        let copy = place.dir.path().join(library.file_name().unwrap());
        std::fs::copy(library, &copy).unwrap();
        let runs_with = |filter: &dyn Fn(u32) -> [String; 2]| {
            let mut server = place.server(&["echo", &place.pem(), PORT]);
            let mut command = place.netns.command(python3());
            command.env("LD_LIBRARY_PATH", place.dir.path());
            let mut client =
                Peer::start(command.args(["-c", include_str!("sslsniff/calls.py"), PORT]));
            let [option, value] = filter(client.pid());
            let copy = copy.to_str().unwrap();
            let tool = Tool::start(&place.netns, &["sslsniff", "--lib", copy, &option, &value]);
            client.go();
            client.rest();
            server.rest();
            let runs = runs(tool.pid());
            tool.stop();
            runs
        };
        let unwatched = runs_with(&|_| ["-c".to_owned(), "nobody.at.all".to_owned()]);
        let watched = runs_with(&|pid| ["-p".to_owned(), pid.to_string()]);
        if Method::of(&Features::probe()).is_session() {
            // The client's calls that are probed at both ends, from SSL_set_fd() to SSL_shutdown().
            assert!(unwatched + 9 <= watched, "{unwatched} of {watched}");
        } else {
            assert_eq!(unwatched, watched);
        }
        assert!(unwatched > 10, "{unwatched}");
    }

    #[test]
    fn every_call_is_told_and_what_is_read_again_is_marked() {
        let ended = watched_calls(&[]);
        let told: Vec<_> = ended
            .kind("data")
            .into_iter()
            .map(|event| {
                let text = String::from_utf8(bytes_of(event)).unwrap();
                let repeated = event.get("repeated").is_some();
                json!([event["function"], event["offset"], text, repeated])
            })
            .collect();
        assert_eq!(
            told,
            [
                json!(["SSL_write", 0, "abcdef", false]),
                json!(["SSL_peek", 0, "abc", true]),
                json!(["SSL_peek_ex", 0, "abcdef", true]),
                json!(["SSL_read", 0, "abcdef", false]),
            ]
        );
        assert_eq!(ended.kind("shutdown").len(), 1);
        assert_eq!(ended.kind("handshake")[0]["sni"], "name.example");
        let close = ended.kind("close")[0].clone();
        assert_eq!((&close["read"], &close["written"]), (&json!(6), &json!(6)));
        assert!(
            close["version"].as_str().unwrap().starts_with("TLSv1."),
            "{close}"
        );
        assert_eq!(close["resumed"], false);
    }

    const LEFT: &str = include_str!("sslsniff/left.py");

    #[test]
    fn a_connection_that_was_never_freed_ends_with_its_process() {
        let ended = Place::new().watched_client(LEFT, &["ends"]);
        let closed = ended.kind("close");
        assert_eq!(closed.len(), 1, "{closed:?}");
        assert_eq!(closed[0]["unfreed"], true);
        assert_eq!(
            (&closed[0]["read"], &closed[0]["written"]),
            (&json!(6), &json!(6))
        );
    }

    #[test]
    fn a_connection_ends_as_its_process_becomes_another_program() {
        let place = Place::new();
        let mut server = place.server(&["echo", &place.pem(), PORT]);
        let mut command = place.netns.command(python3());
        let mut client = Peer::start(command.args(["-c", LEFT, PORT, "executes"]));
        let pid = client.pid();
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &pid.to_string()]);
        client.go();
        tool.wait_for("the close", |event| {
            event["kind"] == "close" && event["unfreed"] == true
        });
        client.go();
        client.rest();
        server.rest();
        let ended = tool.stop();
        nothing_is_lost(&ended);
        assert_eq!(ended.kind("close").len(), 1);
    }

    #[test]
    fn a_connection_is_closed_by_whichever_thread_frees_it() {
        let place = Place::new();
        let mut server = place.server(&["echo", &place.pem(), PORT]);
        let name = format!("left{}", std::process::id());
        let mut command = place.netns.command(python3());
        let mut client = Peer::start(command.args(["-c", LEFT, PORT, "elsewhere", &name]));
        let tool = Tool::start(&place.netns, &["sslsniff", "-c", &name]);
        client.go();
        client.rest();
        server.rest();
        let ended = tool.stop();
        let closed = ended.kind("close");
        assert_eq!(closed.len(), 1, "{closed:?}");
        assert!(closed[0].get("unfreed").is_none(), "{closed:?}");
    }

    /// What is told of a process that is two programs one after the other, if both have a connection at the same address.
    fn two_at_one_address() -> Option<super::common::Ended> {
        let place = Place::new();
        let next = (PORT.parse::<u16>().unwrap() + 1).to_string();
        let mut servers = [PORT, &next].map(|port| place.server(&["echo", &place.pem(), port]));
        // Without randomization, and without what one leaves for the other, the addresses are mostly the same.
        let mut command = place.netns.command("setarch");
        command.args(["-R", python3(), "-c", LEFT, PORT, "repeats"]);
        command.envs([("PYTHONHASHSEED", "0"), ("PYTHONDONTWRITEBYTECODE", "1")]);
        let mut client = Peer::start(&mut command);
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &client.pid().to_string()]);
        // It hears of the first's end only after all that the second does.
        tool.signal(Signal::SIGSTOP);
        client.go();
        client.go();
        let addresses = [client.line(), client.line()];
        client.rest();
        servers.iter_mut().for_each(|server| {
            server.rest();
        });
        tool.signal(Signal::SIGCONT);
        let ended = tool.stop();
        (addresses[0] == addresses[1]).then_some(ended)
    }

    #[test]
    fn a_program_s_connection_is_not_taken_for_that_of_the_one_before_it() {
        let ended = (0..10).find_map(|_| two_at_one_address());
        let ended = ended.expect("the same address twice");
        nothing_is_lost(&ended);
        let written: Vec<_> = ended
            .kind("data")
            .into_iter()
            .filter(|event| event["direction"] == "write")
            .map(|event| (event["connection"].clone(), event["offset"].clone()))
            .collect();
        assert_eq!(written, [(json!(1), json!(0)), (json!(2), json!(0))]);
        let closed = ended.kind("close");
        assert_eq!(closed.len(), 2, "{closed:?}");
        for close in closed {
            assert_eq!((&close["read"], &close["written"]), (&json!(6), &json!(6)));
        }
    }

    #[test]
    fn a_connection_goes_on_until_all_who_share_it_have_freed_it() {
        let ended = Place::new().watched_client(LEFT, &["shares"]);
        let written: Vec<_> = ended
            .kind("data")
            .into_iter()
            .filter(|event| event["direction"] == "write")
            .map(|event| (event["connection"].clone(), event["offset"].clone()))
            .collect();
        assert_eq!(written, [(json!(1), json!(0)), (json!(1), json!(6))]);
        let closed = ended.kind("close");
        assert_eq!(closed.len(), 1, "{closed:?}");
        assert_eq!(closed[0]["written"], 9);
        assert!(closed[0].get("unfreed").is_none());
    }

    #[test]
    fn a_call_that_was_under_way_is_not_taken_for_one_without_room() {
        let place = Place::new();
        let mut server = place.server(&["echo", &place.pem(), PORT]);
        let mut client = place.peer(&["late", PORT, "later"]);
        let pid = server.pid().to_string();
        // Whoever comes second is told of the return of what began before it.
        let first = Tool::start(&place.netns, &["sslsniff", "-p", &pid]);
        client.go();
        assert_eq!(client.line(), "connected");
        until_it_reads(&pid);
        let second = Tool::start(&place.netns, &["sslsniff", "-p", &pid]);
        client.go();
        client.rest();
        server.rest();
        let directions = |ended: &super::common::Ended| -> Vec<Value> {
            nothing_is_lost(ended);
            let data = ended.kind("data").into_iter();
            data.map(|event| event["direction"].clone()).collect()
        };
        assert_eq!(directions(&first.stop()), ["read", "write"]);
        assert_eq!(directions(&second.stop()), ["write"]);
    }

    fn until_it_reads(pid: &str) {
        let read = format!("{} ", libc::SYS_read);
        let reads = || {
            let call = std::fs::read_to_string(format!("/proc/{pid}/syscall"));
            call.expect("a process").starts_with(&read)
        };
        while !reads() {
            std::thread::yield_now();
        }
    }

    /// `*at_fourth_argument = 2^64 - 1; return 1;`
    #[cfg(target_arch = "x86_64")]
    const SAYS_ANYTHING: &[u8] = b"\x48\xc7\x01\xff\xff\xff\xff\xb8\x01\0\0\0\xc3";
    #[cfg(target_arch = "aarch64")]
    const SAYS_ANYTHING: &[u8] = b"\x04\0\x80\x92\x64\0\0\xf9\x20\0\x80\x52\xc0\x03\x5f\xd6";

    const CALLER: &str = "import ctypes, sys\n\
        lib, length = ctypes.CDLL(sys.argv[1]), ctypes.c_size_t()\n\
        sys.stdin.readline()\n\
        for _ in range(3):\n \
            assert lib.SSL_write_ex(ctypes.c_void_p(4096), b'abcdef', ctypes.c_size_t(6), ctypes.byref(length)) == 1\n \
            assert length.value == 2 ** 64 - 1\n";

    #[test]
    fn a_length_that_no_call_has_is_counted_as_a_call_that_is_lost() {
        let place = Place::new();
        let nginx = place.nginx();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", nginx.0.id())).unwrap();
        let line = maps.lines().find(|line| line.contains("libssl.so"));
        let path = line.map(|line| &line[line.find('/').unwrap()..]).unwrap();
        let mut bytes = std::fs::read(path).unwrap();
        let offsets = symbols::find(bytes.as_slice()).unwrap();
        let write = |(function, _): &&(Function, u64)| *function == Function::WriteEx;
        let start = usize::try_from(offsets.iter().find(write).unwrap().1).unwrap();
        bytes[start..start + SAYS_ANYTHING.len()].copy_from_slice(SAYS_ANYTHING);
        let library = place.dir.path().join("libssl-of-another.so");
        std::fs::write(&library, bytes).unwrap();

        let mut command = place.netns.command(python3());
        let mut caller = Peer::start(command.args(["-c", CALLER]).arg(&library));
        let pid = caller.pid().to_string();
        let args = ["sslsniff", "-p", &pid, "--lib", library.to_str().unwrap()];
        let tool = Tool::start(&place.netns, &args);
        caller.go();
        caller.rest();
        let ended = tool.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(ended.kind("data").len(), 0);
        let summary = ended.summary();
        assert_eq!(summary["seen"], 3, "{summary}");
        assert_eq!(summary["bytes_seen"], 0, "{summary}");
        assert_eq!(
            summary["lost_by_cause"]["unreadable"],
            json!({"calls": 3, "bytes": 0}),
            "{summary}"
        );
    }

    fn is_of(event: &Value, name: &str) -> bool {
        event["comm"] == name
    }

    /// What has to be true of curl's exchange with nginx, whoever watches.
    fn both_ends_agree(events: &[&Value], nginx: u32, curl: &str) {
        let ends = |event: &Value| {
            assert_eq!(event["peer_via"], "call", "{event}");
            (event["local"].clone(), event["peer"].clone())
        };
        let of_curl: Vec<_> = events.iter().filter(|event| is_of(event, curl)).collect();
        let of_nginx: Vec<_> = events
            .iter()
            .filter(|event| event["pid"] == nginx)
            .collect();
        assert!(of_curl.len() >= 2 && of_nginx.len() >= 2);
        let (local, peer) = ends(of_curl[0]);
        assert_eq!(peer, "127.0.0.1:4433");
        for event in of_curl {
            assert_eq!(ends(event), (local.clone(), peer.clone()));
        }
        for event in of_nginx {
            assert_eq!(ends(event), (peer.clone(), local.clone()));
        }
    }

    #[test]
    fn the_ends_of_a_connection_are_those_of_the_socket_that_its_calls_use() {
        let place = Place::new();
        let nginx = place.nginx();
        let curl = place.curl_named("endscurl");
        let tool = Tool::start(&place.netns, &["sslsniff", "-c", "endscurl", "-c", "nginx"]);
        let mut command = place.netns.command(&curl);
        assert!(
            command
                .args(CURL)
                .arg(URL)
                .output()
                .unwrap()
                .status
                .success()
        );
        tool.wait_for("the close of nginx", |event| {
            event["kind"] == "close" && event["pid"] == nginx.0.id()
        });
        let ended = tool.stop();
        nothing_is_lost(&ended);
        both_ends_agree(&ended.kind("data"), nginx.0.id(), "endscurl");
    }

    #[test]
    fn the_ends_of_a_connection_stay_known_when_its_socket_is_reset() {
        let place = Place::new();
        let _server = place.server(&["reset", &place.pem(), PORT]);
        let mut client = place.peer(&["shut", PORT, "hello"]);
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &client.pid().to_string()]);
        client.go();
        client.rest();
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let close = ended.kind("close")[0];
        for event in ended.kind("data") {
            assert_eq!(
                (&event["local"], &event["peer"]),
                (&close["local"], &close["peer"])
            );
        }
        let local = close["local"].as_str().unwrap();
        assert!(!local.ends_with(":0"), "{close}");
        assert_eq!(close["peer"], "127.0.0.1:4433");
    }

    /// A cgroup that is gone with this value.
    struct Cgroup(PathBuf);

    impl Cgroup {
        fn new(name: &str) -> Self {
            let mount = ebpfkit::kernel::cgroup::mount().expect("cgroup2 is mounted");
            let path = mount.join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn below(&self, name: &str) -> Self {
            let path = self.0.join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        /// curl, in this cgroup.
        fn curl(&self, place: &Place, curl: &Path) {
            let mut command = place.netns.command("sh");
            command.args([
                "-c",
                "echo $$ >\"$1/cgroup.procs\" && shift && exec \"$@\"",
                "sh",
            ]);
            command.arg(&self.0).arg(curl).args(CURL).arg(URL);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            // Whoever was in it has ended, but may not be gone yet.
            for _ in 0..100 {
                if std::fs::remove_dir(&self.0).is_ok() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }

    #[test]
    fn a_cgroup_is_watched_with_those_below_it_and_no_other() {
        let place = Place::new();
        let _nginx = place.nginx();
        let name = format!("ebpfkit-test-{}.service", std::process::id());
        let watched = Cgroup::new(&name);
        let inner = watched.below("inner");
        let other = Cgroup::new(&format!("ebpfkit-test-{}.other", std::process::id()));
        let tool = Tool::start(&place.netns, &["sslsniff", "--cgroup", &name]);
        for (cgroup, name) in [
            (&watched, "outercurl"),
            (&inner, "innercurl"),
            (&other, "othercurl"),
        ] {
            cgroup.curl(&place, &place.curl_named(name));
        }
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let mut comms: Vec<_> = ended
            .kind("data")
            .iter()
            .map(|event| event["comm"].as_str().unwrap().to_owned())
            .collect();
        comms.dedup();
        assert_eq!(comms, ["outercurl", "innercurl"]);

        let output = place
            .netns
            .command(ebpfkit_path())
            .args(["sslsniff", "--cgroup", "no-such.service"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no-such.service"));
    }

    #[test]
    fn an_ordinary_user_with_the_documented_capabilities_watches() {
        // Before 6.6 a probe needs CAP_SYS_ADMIN: see Method::Classic.
        let multi = ebpfkit::kernel::features::Features::probe().uprobe_multi;
        let capabilities = if multi {
            "+bpf,+perfmon,+sys_ptrace"
        } else {
            "+bpf,+perfmon,+sys_ptrace,+sys_admin"
        };
        let place = Place::new();
        let nginx = place.nginx();
        let curl = place.curl_named("capcurl");
        // Where an ordinary user may run it.
        let copy = place.dir.path().join("ebpfkit");
        copy_program(ebpfkit_path(), &copy);
        let mut command = place.netns.command_with(ALICE, capabilities, &copy);
        command.args(["-o", "json", "sslsniff", "-c", "capcurl", "-c", "nginx"]);
        let tool = Tool::run(command);
        let mut command = place.netns.command(&curl);
        assert!(
            command
                .args(CURL)
                .arg(URL)
                .output()
                .unwrap()
                .status
                .success()
        );
        tool.wait_for("the close of nginx", |event| {
            event["kind"] == "close" && event["pid"] == nginx.0.id()
        });
        let ended = tool.stop();
        nothing_is_lost(&ended);
        both_ends_agree(&ended.kind("data"), nginx.0.id(), "capcurl");
        // Libraries that come later are followed too, unless the distribution keeps that for itself.
        let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
        let kept = multi && paranoid.trim().parse::<i32>().unwrap() > 2;
        let told = ended
            .stderr
            .contains("perf_event_paranoid wants CAP_SYS_ADMIN");
        assert_eq!(told, kept, "{}", ended.stderr);
    }
}
