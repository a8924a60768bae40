// SPDX-License-Identifier: BSD-2-Clause

//! What `ebpfkit tc-guard` tells of a socket from which several send at once.

mod common;

mod root {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Write as _;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::common::{ALICE, Network, Tool, copy_program, python3};

    /// Every endpoint has an event of its own.
    const ENDPOINTS: usize = 4000;
    /// Sends at most of the one who is not told of.
    const MOST: usize = 100_000;

    #[test]
    fn an_executable_is_told_whole_or_not_at_all() {
        let network = Network::new();
        let folder = tempfile::tempdir().unwrap();
        let mut endpoints = String::new();
        for number in 0..ENDPOINTS {
            let (high, low) = (number / 250, number % 250 + 1);
            write!(endpoints, "\"10.77.{high}.{low}:9/udp\", ").unwrap();
        }
        let policy = folder.path().join("guard.toml");
        fs::write(&policy, format!("[[rule]]\nendpoints = [{endpoints}]\n")).unwrap();
        // Of which all parts are names that nothing else ends in.
        let deep = folder
            .path()
            .join("one/two/three/four/five/six/seven/eight/nine/ten/eleven/twelve");
        fs::create_dir_all(&deep).unwrap();
        for at in deep.ancestors().take(13) {
            fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let program = deep.join("sender");
        copy_program(python3(), &program);
        // Packets are judged without the socket's lock, under which the calls are.
        let policy = policy.to_str().unwrap();
        let args = ["tc-guard", "run", "--audit", "--config", policy];
        let guard = Tool::start(&network.machine, &args);
        // The socket is one, and neither waits for the other: the child writes all the time, and of the parent's
        // sends each is told of.
        let send = format!(
            "import os, signal, socket, time\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             to = [(f'10.77.{{n // 250}}.{{n % 250 + 1}}', 9) for n in range({ENDPOINTS})]\n\
             def send(all):\n\
             \x20   for at in all:\n\
             \x20       try: s.sendto(b'x', at)\n\
             \x20       except OSError: pass\n\
             r, w = os.pipe()\n\
             child = os.fork()\n\
             cpus = sorted(os.sched_getaffinity(0))\n\
             os.sched_setaffinity(0, cpus[:1] if child else cpus[-1:])\n\
             open('/proc/self/comm', 'w').write('parent' if child else 'child')\n\
             if not child:\n\
             \x20   send(to[:1])\n\
             \x20   os.write(w, b'x')\n\
             \x20   send(to[:1] * {MOST})\n\
             \x20   os._exit(0)\n\
             os.read(r, 1)\n\
             for at in range(1, {ENDPOINTS}, 100):\n\
             \x20   send(to[at:at + 100])\n\
             \x20   time.sleep(0.01)\n\
             os.kill(child, signal.SIGKILL)\n\
             os.waitpid(child, 0)\n"
        );
        let mut sender = network.machine.command_as(ALICE, &program);
        let sent = sender.args(["-c", &send]).status().unwrap();
        assert!(sent.success());
        let ended = guard.stop();
        let verdicts = ended.kind("verdict");
        assert!(verdicts.len() >= ENDPOINTS / 2, "{}", verdicts.len());
        let whole = program.to_str().unwrap();
        let told = verdicts.iter().filter_map(|event| event.get("exe"));
        let parts: Vec<_> = told.clone().filter(|exe| *exe != whole).collect();
        assert!(parts.is_empty(), "{} parts: {:?}", parts.len(), parts[0]);
        assert!(told.count() > 0);
        // Nor is a caller made of parts of two.
        let mut callers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for event in &verdicts {
            if let (Some(comm), Some(pid)) = (event.get("comm"), event.get("pid")) {
                let pids = callers.entry(comm.as_str().unwrap()).or_default();
                pids.insert(pid.as_u64().unwrap());
            }
        }
        callers.remove("sender");
        assert!(callers.contains_key("parent"), "{callers:?}");
        assert!(callers.values().all(|pids| pids.len() == 1), "{callers:?}");
        let pids: BTreeSet<_> = callers.values().flatten().collect();
        assert_eq!(pids.len(), callers.len(), "{callers:?}");
    }
}
