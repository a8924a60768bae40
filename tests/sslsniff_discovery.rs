// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff` and libraries that come and go while it watches.

mod common;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use ebpfkit::tools::sslsniff::symbols;
    use nix::poll::{PollFd, PollFlags, poll};
    use nix::sys::signal::{SigSet, Signal};
    use procfs::process::Process;
    use serde_json::Value;

    use super::common::{Ended, PATIENCE, Tool, copy_program, python3, sh};
    use super::place::{CURL, PORT, Peer, Place, URL, nothing_is_lost, text};

    /// The library that python3 uses.
    fn libssl() -> PathBuf {
        let script = "import _ssl\nprint(next(line.split()[-1] for line in open('/proc/self/maps') \
                      if 'libssl' in line))";
        let path = sh(Command::new(python3()).args(["-c", script]));
        PathBuf::from(path.trim())
    }

    /// Waits for a line, maps the library, says so, and is then `peer.py text`.
    const LATE: &str = "import sys\nprint('up', flush=True)\nsys.stdin.readline()\n\
                        import ssl\nprint('mapped', flush=True)\n";

    /// A client in a mount namespace of its own where `copy` is in the library's place; it maps the
    /// copy after its first line.
    fn late_client(place: &Place, copy: &Path, piece: &str) -> Peer {
        let script = format!("{LATE}{}", include_str!("sslsniff/peer.py"));
        let mut command = place.netns.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.args(["mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"", "sh"]);
        command.arg(copy).arg(libssl()).arg(python3());
        let mut peer = Peer::start(command.args(["-c", &script, "text", PORT, piece]));
        assert_eq!(peer.line(), "up");
        peer
    }

    fn arrival(tool: &Tool, pid: u32) -> Value {
        tool.wait_for("the library", |event| {
            event["kind"] == "library" && event["pid"] == pid
        })
    }

    fn is_whole(ended: &Ended, pid: u32, piece: &str) {
        nothing_is_lost(ended);
        assert_eq!(text(ended, pid, "write"), piece);
        assert_eq!(text(ended, pid, "read"), piece);
        let handshakes = ended.kind("handshake");
        assert!(
            handshakes
                .iter()
                .any(|event| event["pid"] == pid && event["result"] == "ok")
        );
    }

    #[test]
    fn a_library_of_another_mount_namespace_is_watched_once_a_process_opens_it() {
        let place = Place::new();
        let mut server = place.server(&["echo", &place.pem(), PORT]);
        let copy = place.dir.path().join("libcopy");
        fs::copy(libssl(), &copy).unwrap();
        let mut client = late_client(&place, &copy, "hello");
        // By number, so that nothing of others is looked at.
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &client.pid().to_string()]);
        client.go();
        assert_eq!(client.line(), "mapped");
        let arrived = arrival(&tool, client.pid());
        let functions = arrived["functions"].as_array().unwrap();
        assert!(
            functions.contains(&Value::from("SSL_write_ex")),
            "{arrived}"
        );
        assert_eq!(arrived["library"], libssl().to_str().unwrap());
        client.go();
        client.rest();
        server.rest();
        is_whole(&tool.stop(), client.pid(), "hello");
    }

    #[test]
    fn a_deleted_library_is_watched_as_well() {
        let place = Place::new();
        let mut server = place.server(&["echo", &place.pem(), PORT]);
        let copy = place.dir.path().join("libcopy");
        fs::copy(libssl(), &copy).unwrap();
        let mut client = late_client(&place, &copy, "hello");
        client.go();
        assert_eq!(client.line(), "mapped");
        fs::remove_file(&copy).unwrap();
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &client.pid().to_string()]);
        client.go();
        client.rest();
        server.rest();
        is_whole(&tool.stop(), client.pid(), "hello");
    }

    #[test]
    fn a_library_that_is_written_to_in_place_is_probed_where_its_functions_are_now() {
        let place = Place::new();
        let mut server = place.server(&["echo", &place.pem(), PORT]);
        let folder = place.dir.path().join("libraries");
        fs::create_dir(&folder).unwrap();
        let copy = folder.join(libssl().file_name().unwrap());
        // As of another build: each function is said to be some bytes further on.
        let library = fs::read(libssl()).unwrap();
        let offsets = symbols::find(library.as_slice()).unwrap();
        fs::write(&copy, moved(&library, 16)).unwrap();
        let elsewhere = symbols::find(fs::read(&copy).unwrap().as_slice()).unwrap();
        assert_eq!(offsets.len(), elsewhere.len());
        assert!(
            offsets
                .iter()
                .zip(&elsewhere)
                .all(|(here, there)| here.1 + 16 == there.1)
        );
        let tool = Tool::start(&place.netns, &["sslsniff", "--lib", copy.to_str().unwrap()]);
        let modified = fs::metadata(&copy).unwrap().modified().unwrap();
        fs::write(&copy, &library).unwrap();
        // As `cp -p` and `touch -r` do, and builds whose times are all the same.
        let file = fs::File::options().write(true).open(&copy).unwrap();
        file.set_modified(modified).unwrap();
        let script = format!("{LATE}{}", include_str!("sslsniff/peer.py"));
        let mut command = place.netns.command(python3());
        command.env("LD_LIBRARY_PATH", &folder);
        let mut client = Peer::start(command.args(["-c", &script, "text", PORT, "hello"]));
        assert_eq!(client.line(), "up");
        client.go();
        assert_eq!(client.line(), "mapped");
        let arrived = arrival(&tool, client.pid());
        assert_eq!(arrived["library"], copy.to_str().unwrap());
        client.go();
        client.rest();
        server.rest();
        is_whole(&tool.stop(), client.pid(), "hello");
    }

    /// A library with the value of each of its symbols so much larger.
    fn moved(library: &[u8], by: u64) -> Vec<u8> {
        let mut moved = library.to_vec();
        let header = |at: usize| -> usize {
            u64::from_le_bytes(library[at..at + 8].try_into().unwrap())
                .try_into()
                .unwrap()
        };
        // e_shoff, e_shnum; sh_type, sh_offset, sh_size; st_value: elf(5)
        let count = usize::from(u16::from_le_bytes([library[60], library[61]]));
        for section in (0..count).map(|number| header(40) + number * 64) {
            if library[section + 4..section + 8] != 11_u32.to_le_bytes() {
                continue;
            }
            let (offset, size) = (header(section + 24), header(section + 32));
            for symbol in (offset..offset + size).step_by(24) {
                let value = &mut moved[symbol + 8..symbol + 16];
                let now = u64::from_le_bytes(value.try_into().unwrap()) + by;
                value.copy_from_slice(&now.to_le_bytes());
            }
        }
        moved
    }

    /// A file system that is gone with this value.
    struct Tmpfs(PathBuf);

    impl Tmpfs {
        fn new(at: PathBuf) -> Self {
            fs::create_dir(&at).unwrap();
            sh(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at));
            Self(at)
        }

        fn unmounts(&self) -> bool {
            let output = Command::new("umount").arg(&self.0).output().unwrap();
            output.status.success()
        }
    }

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        }
    }

    #[test]
    fn a_file_system_is_let_go_once_nobody_uses_its_library() {
        let place = Place::new();
        let mut server = place.server(&["echo", &place.pem(), PORT]);
        let tmpfs = Tmpfs::new(place.dir.path().join("fs"));
        fs::copy(libssl(), tmpfs.0.join(libssl().file_name().unwrap())).unwrap();
        let script = format!("{LATE}{}", include_str!("sslsniff/peer.py"));
        let mut command = place.netns.command(python3());
        command.env("LD_LIBRARY_PATH", &tmpfs.0);
        let mut client = Peer::start(command.args(["-c", &script, "text", PORT, "hello"]));
        assert_eq!(client.line(), "up");
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &client.pid().to_string()]);
        client.go();
        assert_eq!(client.line(), "mapped");
        arrival(&tool, client.pid());
        client.go();
        client.rest();
        server.rest();
        // The client has ended, but the probes are there until somebody looks.
        let start = Instant::now();
        while !tmpfs.unmounts() {
            assert!(start.elapsed() < PATIENCE, "the file system stays busy");
            std::thread::sleep(Duration::from_millis(200));
        }
        is_whole(&tool.stop(), client.pid(), "hello");
    }

    /// Runs fresh copies of `cat`, one after the other, until `done` says so, and counts those that were let go on.
    ///
    /// They have that signal blocked, which does its work all the same and then stays with them. Whether they were seen
    /// to stop says less: with one processor whoever lets them go on may be done before they get to it.
    fn run_fresh(folder: &Path, name: &str, done: &AtomicBool, held: &AtomicUsize) {
        SigSet::from(Signal::SIGCONT).thread_block().unwrap();
        let program = folder.join(name);
        for run in 0.. {
            copy_program("/bin/cat", &program);
            let mut command = Command::new(&program);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut asks = child.stdin.take().unwrap();
            asks.write_all(b"?").unwrap();
            let answers = child.stdout.take().unwrap();
            let mut answered = [PollFd::new(answers.as_fd(), PollFlags::POLLIN)];
            if poll(&mut answered, u16::try_from(PATIENCE.as_millis()).unwrap()) != Ok(1) {
                child.kill().unwrap();
                panic!("run {run} is left waiting");
            }
            let process = Process::new(child.id().cast_signed()).unwrap();
            let pending = process.status().unwrap().shdpnd;
            held.fetch_add(
                usize::from(pending >> (libc::SIGCONT - 1) & 1 == 1),
                Ordering::Relaxed,
            );
            drop(asks);
            assert!(child.wait().unwrap().success(), "run {run}");
            fs::remove_file(&program).unwrap();
            if done.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    #[test]
    fn whoever_is_held_goes_on_also_when_it_ends() {
        let place = Place::new();
        let name = format!("held{}", std::process::id());
        let (done, held) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let runs = scope.spawn(|| run_fresh(place.dir.path(), &name, &done, &held));
            // However this thread leaves, the other one is not left running.
            let _done = Done(&done);
            for round in 0..3 {
                let tool = Tool::start(&place.netns, &["sslsniff", "--hold", "-c", &name]);
                let (before, start) = (held.load(Ordering::Relaxed), Instant::now());
                while held.load(Ordering::Relaxed) == before && !runs.is_finished() {
                    assert!(start.elapsed() < PATIENCE, "round {round}: nobody was held");
                    std::thread::sleep(Duration::from_millis(1));
                }
                // The next one is somewhere on its way.
                tool.stop();
            }
        });
    }

    /// Says that it is done when it goes.
    struct Done<'a>(&'a AtomicBool);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// How many containers start: an emulated machine takes seconds for each.
    fn containers() -> usize {
        if std::env::var_os("EBPFKIT_VM").is_some() {
            3
        } else {
            200
        }
    }

    #[test]
    fn what_starts_in_fresh_containers_is_seen_whole_if_it_is_held() {
        let place = Place::new();
        let _nginx = place.nginx();
        // No name of another run's, which would be seen, too.
        let name = format!("fresh{}", std::process::id());
        let curl = place.curl_named(&name);
        let tool = Tool::start(&place.netns, &["sslsniff", "--hold", "-c", &name]);
        let inner = format!(
            "mount --bind \"$1\" \"$2\" && exec {} {} {URL}",
            curl.display(),
            CURL.join(" ")
        );
        for container in 0..containers() {
            let copy = place.dir.path().join(format!("lib{container}"));
            fs::copy(libssl(), &copy).unwrap();
            let mut command = place.netns.command("unshare");
            command.args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &inner,
                "sh",
            ]);
            let output = command.arg(&copy).arg(libssl()).output().unwrap();
            assert_eq!(output.stdout, b"the plain answer\n", "{output:?}");
            fs::remove_file(&copy).unwrap();
        }
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let mut exchanges: BTreeMap<u64, [String; 2]> = BTreeMap::new();
        for event in ended.kind("data") {
            let side = usize::from(event["direction"] == "read");
            let exchange = exchanges.entry(event["pid"].as_u64().unwrap()).or_default();
            exchange[side].push_str(event["data"].as_str().unwrap());
        }
        let whole = exchanges
            .values()
            .filter(|[request, answer]| {
                request.starts_with("GET / HTTP/1.1\r\n")
                    && answer.ends_with("\r\n\r\nthe plain answer\n")
            })
            .count();
        assert_eq!(whole, containers());
    }
}
