// SPDX-License-Identifier: BSD-2-Clause

//! Programs of Debian that are not installed: each runs with the folder that they are unpacked in as its root, in a
//! mount and a PID namespace of its own, which ends with it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::unpacked;
use crate::common::{Background, PATIENCE, sh};
use crate::place::Place;

/// Gives a command its root ($1), where the place's folder ($2) is /test, and a copy ($3) in place of a library ($4).
const ENTER: &str = r#"
mount --bind "$2" "$1/test" && mount --bind "$3" "$1/$4" &&
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" || exit
exec chroot "$1" sh -c "$5"
"#;

/// Where programs of one place run.
pub struct Container<'a> {
    place: &'a Place,
    root: PathBuf,
    library: PathBuf,
    inner: PathBuf,
}

impl<'a> Container<'a> {
    /// Its programs have a copy of this library, which no other test's have.
    pub fn new(place: &'a Place, library: &str) -> Self {
        let root = unpacked("programs");
        let original = super::first_below(&root, &[library]);
        let library = place.dir.path().join(library);
        fs::copy(&original, &library).unwrap();
        // Programs that refuse to be root's enter it too.
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let inner = original.strip_prefix(&root).unwrap().to_owned();
        Self {
            place,
            root,
            library,
            inner,
        }
    }

    /// The copy, as it is seen from outside.
    pub fn library(&self) -> &str {
        self.library.to_str().unwrap()
    }

    /// A file in the folder that is /test inside.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.dir.path().join(name)
    }

    /// Writes such a file.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.file(name), content).unwrap();
    }

    /// What a shell makes of this line.
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.place.netns.command("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child"]);
        command.args(["--propagation", "private", "sh", "-c", ENTER, "sh"]);
        command.arg(&self.root).arg(self.place.dir.path());
        command.arg(&self.library).arg(&self.inner).arg(line);
        command
    }

    /// Runs a program to its end, with this input, and gives what it prints.
    pub fn run(&self, line: &str, input: &[u8]) -> Vec<u8> {
        let line = &format!("timeout {} {line}", PATIENCE.as_secs());
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // Whoever reads less than all of it says why.
                let _ = stdin.write_all(input);
            });
            child.wait_with_output().unwrap()
        });
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        output.stdout
    }

    /// Starts one that listens at this port, and waits until it does.
    pub fn serve(&self, line: &str, port: &str) -> Background {
        let mut command = self.command(line);
        let log = fs::File::create(self.file("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        let server = Background(command.stderr(log).spawn().unwrap());
        let start = Instant::now();
        while !listens(self.place, port.parse().unwrap()) {
            let log = fs::read_to_string(self.file("log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "{line} does not listen: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

/// Whether anybody listens there: a connection to find it out might be the only one that a server serves.
fn listens(place: &Place, port: u16) -> bool {
    let table = place
        .netns
        .enter(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    // sl local_address rem_address st: proc_net_tcp(5); 0A is TCP_LISTEN.
    let wanted = format!(":{port:04X} 00000000:0000 0A ");
    table
        .join()
        .unwrap()
        .lines()
        .any(|line| line.contains(&wanted))
}

/// A copy of a file, for its owner alone.
pub fn private_copy(from: &Path, to: &Path, owner: u32) {
    fs::copy(from, to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(to, Some(owner), Some(owner)).unwrap();
}

/// A folder for such a user.
pub fn folder_of(path: &Path, owner: u32) {
    fs::create_dir(path).unwrap();
    std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
    sh(Command::new("chmod").arg("700").arg(path));
}
