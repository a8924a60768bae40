// SPDX-License-Identifier: BSD-2-Clause

//! Cgroups of a test's own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use ebpfkit::kernel::cgroup;

use super::{Netns, python3, swept};

/// A cgroup with one below it, `child`, both removed on drop.
pub struct Cgroups {
    /// Below the root of all cgroups.
    pub path: String,
    root: PathBuf,
}

impl Cgroups {
    pub fn new() -> Self {
        let root = cgroup::mount().expect("cgroup2 is mounted");
        let path = format!("/{}", swept("ebpfkit"));
        let cgroups = Self { path, root };
        cgroups.make();
        cgroups
    }

    pub fn make(&self) {
        fs::create_dir_all(self.root.join(&self.path[1..]).join("child")).unwrap();
    }

    pub fn remove(&self) {
        let at = self.root.join(&self.path[1..]);
        // A process that has just ended may still be there for a moment.
        for _ in 0..1000 {
            let _ = fs::remove_dir(at.join("child"));
            if fs::remove_dir(&at).is_ok() || !at.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What a process writes its number to, to be in the one or in the one `below` it.
    fn procs(&self, below: &str) -> PathBuf {
        let at = self.root.join(&self.path[1..]).join(below);
        at.join("cgroup.procs")
    }

    /// A python as `uid` in this cgroup or the one below it.
    pub fn command(&self, netns: &Netns, below: &str, uid: u32) -> Command {
        let mut command = netns.command("sh");
        command.args(["-c", "echo $$ > \"$1\" && shift && exec \"$@\"", "sh"]);
        command.arg(self.procs(below));
        command.args(["setpriv", "--reuid", &uid.to_string(), "--clear-groups"]);
        command.args(["--", python3()]);
        command
    }

    /// What `work` comes to with this process, all of it, in this cgroup or the one below it.
    pub fn inside<T>(&self, below: &str, work: impl FnOnce() -> T) -> T {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = self.root.join(own.unwrap()).join("cgroup.procs");
        fs::write(self.procs(below), "0").unwrap();
        let done = work();
        fs::write(before, "0").unwrap();
        done
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.remove();
    }
}
