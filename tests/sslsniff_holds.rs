// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff --hold`: whoever is stopped goes on, and so does whoever stopped itself for that.

mod common;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::fs;
    use std::io::ErrorKind;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::common::{PATIENCE, Tool, python3, sh};
    use super::place::Place;

    /// As su, runuser and nsenter do, one in another: each waits for its child, stops itself when that is stopped,
    /// and has it go on when it goes on itself. The innermost maps a library under a name of its own, when it is told to.
    const NESTED: &str = "import ctypes, os, signal, sys\n\
        def nested(depth):\n\
        \tchild = os.fork()\n\
        \tif child == 0:\n\
        \t\tif depth > 1:\n\
        \t\t\tnested(depth - 1)\n\
        \t\topen('/proc/self/comm', 'w').write(sys.argv[1])\n\
        \t\tos.write(1, b'ready\\n')\n\
        \t\tos.read(0, 1)\n\
        \t\tctypes.CDLL(sys.argv[2])\n\
        \t\tos._exit(0)\n\
        \twhile True:\n\
        \t\t_, status = os.waitpid(child, os.WUNTRACED)\n\
        \t\tif not os.WIFSTOPPED(status):\n\
        \t\t\tos._exit(0)\n\
        \t\tos.write(1, b'stopped\\n')\n\
        \t\tos.kill(os.getpid(), signal.SIGSTOP)\n\
        \t\tos.kill(child, signal.SIGCONT)\n\
        nested(int(sys.argv[3]))\n";

    fn libssl() -> PathBuf {
        let script = "import _ssl\nprint(next(line.split()[-1] for line in open('/proc/self/maps') \
                      if 'libssl' in line))";
        let path = sh(Command::new(python3()).args(["-c", script]));
        PathBuf::from(path.trim())
    }

    /// Waits until it has ended by itself.
    fn ends(mut child: Child, what: &str) {
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
                panic!("{what} is left waiting");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn parents_that_stop_themselves_go_on_with_their_child() {
        let place = Place::new();
        let name = format!("kin{}", std::process::id());
        let tool = Tool::start(&place.netns, &["sslsniff", "--hold", "-c", &name]);
        let own = Pid::from_raw(tool.pid().cast_signed());
        let out = place.dir.path().join("out");
        let mut seen = [false; 3];
        let start = Instant::now();
        for round in 0.. {
            let depth = round % seen.len();
            let copy = place.dir.path().join(format!("lib{round}"));
            fs::copy(libssl(), &copy).unwrap();
            let mut command = Command::new(python3());
            command.args(["-c", NESTED, &name]).arg(&copy);
            command.arg((depth + 1).to_string());
            command.stdin(Stdio::piped());
            command.stdout(Stdio::from(fs::File::create(&out).unwrap()));
            let said = |word| fs::read_to_string(&out).unwrap().matches(word).count();
            let mut child = command.spawn().unwrap();
            let stdin = child.stdin.take();
            let mut waits = |word, times| {
                while said(word) < times && child.try_wait().unwrap().is_none() {
                    assert!(start.elapsed() < PATIENCE, "neither {word} nor ended");
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            waits("ready", 1);
            // With one processor, sslsniff has the child go on before its parent sees that it was stopped. So sslsniff
            // comes last. After a while without it nobody is held.
            kill(own, Signal::SIGSTOP).unwrap();
            drop(stdin);
            waits("stopped", depth + 1);
            kill(own, Signal::SIGCONT).unwrap();
            ends(child, "a parent");
            seen[depth] |= said("stopped") > depth;
            if round > 8 && seen == [true; 3] {
                break;
            }
            // Else nothing was tried.
            assert!(start.elapsed() < PATIENCE, "none stopped itself: {seen:?}");
        }
        tool.stop();
    }

    /// Starts a fresh copy of `true`.
    fn fresh(program: &Path) -> Child {
        let _ = fs::remove_file(program);
        fs::copy("/bin/true", program).unwrap();
        loop {
            match Command::new(program).spawn() {
                // Another test starts something in this moment, which has the copy's descriptor still.
                Err(err) if err.kind() == ErrorKind::ExecutableFileBusy => {}
                child => return child.unwrap(),
            }
        }
    }

    fn is_stopped(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    }

    #[test]
    fn nobody_is_held_by_one_that_is_stopped_itself() {
        let place = Place::new();
        let name = format!("still{}", std::process::id());
        let program = place.dir.path().join(&name);
        let tool = Tool::start(&place.netns, &["sslsniff", "--hold", "-c", &name]);
        let own = Pid::from_raw(tool.pid().cast_signed());
        ends(fresh(&program), "a program");
        kill(own, Signal::SIGSTOP).unwrap();
        let threads = || fs::read_dir(format!("/proc/{}/task", tool.pid())).unwrap();
        let name_of = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        while !threads().all(|entry| is_stopped(name_of(entry).to_str().unwrap().parse().unwrap()))
        {
            std::thread::yield_now();
        }
        // The first ones may come before that is known.
        let start = Instant::now();
        let mut waits = Vec::new();
        loop {
            let mut child = fresh(&program);
            let ended = loop {
                if child.try_wait().unwrap().is_some() {
                    break true;
                }
                if is_stopped(child.id()) {
                    break false;
                }
            };
            if ended {
                break;
            }
            waits.push(child);
            if start.elapsed() > PATIENCE {
                kill(own, Signal::SIGCONT).unwrap();
                panic!("all are held");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        kill(own, Signal::SIGCONT).unwrap();
        for child in waits {
            ends(child, "who was held before");
        }
        let ended = tool.stop();
        let times = ended.summary()["not_held"].as_u64();
        assert!(times > Some(0), "{times:?}");
    }
}
