// SPDX-License-Identifier: BSD-2-Clause

//! What the kernel tells of interfaces, hooks and pins, on the real kernel.

mod common;

mod root {
    use std::io::{BufRead as _, BufReader};
    use std::os::fd::AsFd as _;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use ebpfkit::kernel::hooks::{self, How};
    use ebpfkit::kernel::netlink::{Changes, Monitor};
    use ebpfkit::kernel::pin::{self, Shelf};
    use ebpfkit::kernel::tc::{Method, Side};
    use ebpfkit::kernel::text;
    use ebpfkit::tools::tc_guard::Guard;
    use ebpfkit::tools::tc_guard::plan::Plan;
    use ebpfkit::tools::tc_guard::policy::Policy;
    use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType, libbpf_sys};

    use super::common::{Bpffs, Netns, PATIENCE, sh};

    /// What has changed, once something has.
    fn next(monitor: &Monitor) -> Changes {
        let start = std::time::Instant::now();
        loop {
            let changes = monitor.changes().unwrap();
            if changes.any {
                return changes;
            }
            assert!(start.elapsed() < PATIENCE, "no change was told");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn in_netns(netns: &Netns) -> impl Fn(&[&str]) + use<> {
        let name = netns.name().to_owned();
        move |args| {
            sh(Command::new("ip").args(["-n", &name]).args(args));
        }
    }

    #[test]
    fn an_interface_is_told_of_as_it_comes_and_as_it_goes() {
        let netns = Netns::new();
        let ip = in_netns(&netns);
        netns
            .enter(move || {
                let monitor = Monitor::new().unwrap();
                assert_eq!(monitor.changes().unwrap(), Changes::default());
                ip(&[
                    "link", "add", "late0", "type", "veth", "peer", "name", "late1",
                ]);
                assert_eq!(next(&monitor).gone, [0_i32; 0]);
                let all = ebpfkit::kernel::interfaces::all().unwrap();
                let late = all.iter().find(|at| at.name == "late0").unwrap();
                while monitor.changes().unwrap().any {}
                ip(&["link", "del", "late0"]);
                let mut gone = Vec::new();
                while !gone.contains(&late.index) {
                    gone.extend(next(&monitor).gone);
                }
            })
            .join()
            .unwrap();
    }

    #[test]
    fn more_changes_than_there_is_room_for_still_are_a_change() {
        let netns = Netns::new();
        let ip = in_netns(&netns);
        netns
            .enter(move || {
                ip(&["link", "add", "a0", "type", "veth", "peer", "name", "a1"]);
                let monitor = Monitor::new().unwrap();
                let room: libc::c_int = 0;
                nix::sys::socket::setsockopt(
                    &monitor.fd(),
                    nix::sys::socket::sockopt::RcvBuf,
                    &usize::try_from(room).unwrap(),
                )
                .unwrap();
                for _ in 0..8 {
                    ip(&["link", "set", "a0", "up"]);
                    ip(&["link", "set", "a0", "down"]);
                }
                assert!(monitor.changes().unwrap().any);
                // It goes on hearing.
                ip(&["link", "set", "a0", "up"]);
                assert!(next(&monitor).any);
            })
            .join()
            .unwrap();
    }

    #[test]
    fn filters_are_listed_in_the_order_in_which_they_run() {
        let netns = Netns::new();
        netns.ip(&["link", "add", "a0", "type", "veth", "peer", "name", "a1"]);
        let tc = |args: &str| {
            sh(Command::new("tc")
                .args(["-n", netns.name()])
                .args(args.split(' ')))
        };
        let look = || {
            netns
                .enter(|| {
                    let all = ebpfkit::kernel::interfaces::all().unwrap();
                    let index = all.iter().find(|at| at.name == "a0").unwrap().index;
                    [Side::Egress, Side::Ingress].map(|side| hooks::at(index, side).unwrap())
                })
                .join()
                .unwrap()
        };
        assert_eq!(look(), [vec![], vec![]]);
        tc("qdisc add dev a0 clsact");
        assert_eq!(look(), [vec![], vec![]]);
        tc("filter add dev a0 egress prio 20 protocol all u32 match u32 0 0");
        tc("filter add dev a0 egress prio 10 protocol ip u32 match u32 0 0");
        let [egress, ingress] = look();
        assert_eq!(ingress, []);
        let priorities: Vec<_> = egress
            .iter()
            .filter_map(|attached| match &attached.how {
                How::Filter { kind, priority, .. } if kind == "u32" => Some(*priority),
                _ => None,
            })
            .collect();
        // u32 lists its hash tables as well.
        let mut once = priorities.clone();
        once.dedup();
        assert_eq!(once, [10, 20], "{egress:?}");
        assert_eq!(priorities.len(), egress.len());
    }

    #[test]
    fn a_guard_by_clsact_goes_ahead_of_others_but_for_the_first_priority() {
        guard_beside("1", 2);
        guard_beside("20", 19);
    }

    fn guard_beside(others: &str, expected: u32) {
        let netns = Netns::new();
        netns.ip(&["link", "add", "a0", "type", "veth", "peer", "name", "a1"]);
        for args in [
            "qdisc add dev a0 clsact",
            &format!("filter add dev a0 egress prio {others} protocol ip u32 match u32 0 0"),
        ] {
            sh(Command::new("tc")
                .args(["-n", netns.name()])
                .args(args.split(' ')));
        }
        netns
            .enter(move || {
                let endpoints = ["10.0.0.1:80/tcp".parse().unwrap()];
                let plan = Plan::new(&Policy::of(&endpoints, &[]), None).unwrap();
                let guard = Guard::load(&plan, Method::Clsact, None).unwrap();
                let all = ebpfkit::kernel::interfaces::all().unwrap();
                let a0 = all.into_iter().find(|at| at.name == "a0").unwrap();
                let gates = || {
                    let there = hooks::at(a0.index, Side::Egress).unwrap();
                    let gate = there.into_iter().filter(|at| at.program.is_some());
                    gate.map(|at| at.how).collect::<Vec<_>>()
                };
                let attached = guard.attach(std::slice::from_ref(&a0)).unwrap();
                let found = gates();
                assert!(
                    matches!(found[..], [How::Filter { priority, .. }] if priority == expected),
                    "{found:?}"
                );
                drop(attached);
                assert_eq!(gates(), []);
            })
            .join()
            .unwrap();
    }

    fn map(value: u32) -> MapHandle {
        let opts = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let map = MapHandle::create(MapType::Array, Some("life"), 4, 4, 1, &opts).unwrap();
        map.update(&0_u32.to_ne_bytes(), &value.to_ne_bytes(), MapFlags::ANY)
            .unwrap();
        map
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_no_place_for_pins() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let bpffs = Bpffs::new();
        let folder = bpffs.path().join("folder");
        let shelf = Shelf::new(bpffs.path(), "folder", "shelf");
        std::fs::create_dir(&folder).unwrap();
        chown(&folder, Some(12345), None).unwrap();
        assert!(shelf.lock().is_err() && shelf.check().is_err());
        assert!(shelf.lock_to_remove().is_err());
        chown(&folder, Some(0), None).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(shelf.lock().is_err() && shelf.check().is_err());
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(shelf.lock().is_ok() && shelf.check().is_ok());
    }

    #[test]
    fn root_takes_away_what_a_service_s_user_has_pinned_and_pins_nothing_there() {
        use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
        const SERVICE: u32 = 12345;
        let bpffs = Bpffs::new();
        let mode = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let folder = bpffs.path().join("folder");
        let shelf = Shelf::new(bpffs.path(), "folder", "shelf");
        for path in [&folder, &shelf.path()] {
            std::fs::create_dir(path).unwrap();
            mode(path, 0o700);
            chown(path, Some(SERVICE), None).unwrap();
        }
        // Who else may make folders could have made this one.
        for open_to_others in [0o1777, 0o777, 0o720] {
            mode(bpffs.path(), open_to_others);
            assert!(shelf.check().is_err() && shelf.lock_to_remove().is_err());
        }
        mode(bpffs.path(), 0o700);
        assert!(shelf.check().is_ok());
        let err = shelf.lock().unwrap_err().to_string();
        assert!(err.contains("12345"), "{err}");

        // A shelf of a third user's is none of root's or the service's.
        chown(shelf.path(), Some(SERVICE + 1), None).unwrap();
        assert!(shelf.check().is_err());

        // What the user has put there in place of the shelf is removed, not what it points to.
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("kept"), "").unwrap();
        std::fs::remove_dir(shelf.path()).unwrap();
        symlink(elsewhere.path(), shelf.path()).unwrap();
        assert!(shelf.check().is_err());
        let lock = shelf.lock_to_remove().unwrap();
        assert!(shelf.remove(&lock).is_err());
        std::fs::remove_file(shelf.path()).unwrap();
        symlink(elsewhere.path(), bpffs.path().join("folder/shelf:new")).unwrap();
        assert!(shelf.remove(&lock).is_err());
        assert!(elsewhere.path().join("kept").exists());
        std::fs::remove_file(bpffs.path().join("folder/shelf:new")).unwrap();

        std::fs::create_dir(shelf.path()).unwrap();
        chown(shelf.path(), Some(SERVICE), None).unwrap();
        shelf.remove(&lock).unwrap();
        assert!(!folder.exists());
    }

    fn value(shelf: &Shelf, name: &str) -> u32 {
        let map = MapHandle::from_pinned_path(shelf.pin(name)).unwrap();
        let value = map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap();
        u32::from_ne_bytes(value.unwrap().try_into().unwrap())
    }

    #[test]
    fn a_shelf_appears_as_a_whole_or_not_at_all() {
        let bpffs = Bpffs::new();
        let shelf = Shelf::new(bpffs.path(), "folder", "shelf");
        let lock = shelf.lock().unwrap();
        let draft = shelf.draft(&lock).unwrap();
        draft.add("one", map(1).as_fd()).unwrap();
        assert!(!shelf.exists());
        // A draft that nobody commits is gone; one that a killed process left is replaced.
        drop(draft);
        std::mem::forget(shelf.draft(&lock).unwrap());
        let draft = shelf.draft(&lock).unwrap();
        draft.add("one", map(1).as_fd()).unwrap();
        draft.add("two", map(2).as_fd()).unwrap();
        let shelf = draft.commit().unwrap();
        assert_eq!(shelf.names(), ["one", "two"]);
        assert_eq!((value(&shelf, "one"), value(&shelf, "two")), (1, 2));

        shelf.replace(&lock, "two", map(3).as_fd()).unwrap();
        shelf.add(&lock, "four", map(4).as_fd()).unwrap();
        assert_eq!(value(&shelf, "two"), 3);
        shelf.forget(&lock, "one").unwrap();
        shelf.forget(&lock, "one").unwrap();
        assert_eq!(shelf.names(), ["four", "two"]);

        shelf.remove(&lock).unwrap();
        assert!(!shelf.exists() && !bpffs.path().join("folder").exists());
        shelf.remove(&shelf.lock().unwrap()).unwrap();
    }

    #[test]
    fn text_comes_back_as_it_was_stored_and_stays_so() {
        for length in [0, 1, 4088, 4089, 100_000] {
            let text: String = "grün".chars().cycle().take(length).collect();
            let map = text::store("life", &text).unwrap();
            assert_eq!(text::load(&map).unwrap(), text);
            map.update(&0_u32.to_ne_bytes(), &[0; 4096], MapFlags::ANY)
                .unwrap_err();
        }
        text::load(&map(7)).unwrap_err();
    }

    #[test]
    fn a_folder_that_is_no_bpffs_is_refused_by_name() {
        let err = pin::bpffs(Some(std::path::Path::new("/proc")), true).unwrap_err();
        assert_eq!(ebpfkit::failure::exit_code(&err), ebpfkit::failure::USAGE);
        assert!(err.to_string().contains("/proc is no bpffs"), "{err}");
        let bpffs = Bpffs::new();
        assert_eq!(
            pin::bpffs(Some(bpffs.path()), false).unwrap().as_deref(),
            Some(bpffs.path())
        );
    }

    /// Set in the environment of the process that is killed: this test, once more.
    const VICTIM: &str = "EBPFKIT_TO_BE_KILLED";

    #[test]
    fn what_a_killed_test_has_made_goes_all_the_same() {
        let itself = "root::what_a_killed_test_has_made_goes_all_the_same";
        if std::env::var_os(VICTIM).is_some() {
            let (netns, bpffs) = (Netns::new(), Bpffs::new());
            println!("\nmade {} {}", netns.path().display(), bpffs.text());
            loop {
                std::thread::park();
            }
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", itself, "--nocapture"]);
        let mut victim = command
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let mut made =
            lines.filter_map(|line| line.unwrap().strip_prefix("made ").map(str::to_owned));
        let made = made.next().expect("what it has made");
        let there = || {
            made.split(' ')
                .filter(|path| Path::new(path).exists())
                .count()
        };
        assert_eq!(there(), 2, "{made}");
        victim.kill().unwrap();
        victim.wait().unwrap();
        let start = std::time::Instant::now();
        while there() > 0 {
            assert!(start.elapsed() < PATIENCE, "left behind: {made}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
