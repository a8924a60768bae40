// SPDX-License-Identifier: BSD-2-Clause

//! What is said at the start of what is watched, and of what is not.

use anyhow::{Result, anyhow};

use super::discover::{self, Found};
use super::event::Skips;
use super::inspect::Inspector;
use super::is_stopped;
use crate::kernel::privileges::{Capabilities, Capability};
use crate::kernel::stop::Stop;
use crate::output::Stdout;

/// Says what was found, as far as that is wanted.
pub(super) fn tell(found: &Found, sink: &Stdout) {
    for library in &found.libraries {
        let functions: Vec<_> = library.offsets.iter().map(|(one, _)| one.name()).collect();
        sink.detail(&format!(
            "{}: {}",
            library.path.display(),
            functions.join(", ")
        ));
    }
    sink.detail(&format!("{} files were looked into", found.examined));
    if found.left_out > 0 {
        sink.note(&format!(
            "{} files are not watched, as too much was read of others of their owners; name one with --lib",
            found.left_out
        ));
    }
    if found.hidden > 0 {
        let hidden = format!(
            "{} processes could not be looked into for their libraries; the machine's own are \
             watched all the same",
            found.hidden
        );
        // Even root meets a process or two that it may not look into.
        if Capabilities::effective().has(Capability::SysPtrace) {
            sink.detail(&hidden);
        } else {
            sink.note(&format!("{hidden} ({} is missing)", Capability::SysPtrace));
        }
    }
}

/// Says what of the processes that are watched cannot be.
pub(super) fn tell_unwatched(pids: &[u32], stop: &Stop, sink: &Stdout) -> Result<()> {
    let all = if pids.is_empty() {
        discover::all_pids()?
    } else {
        pids.to_vec()
    };
    let mut inspector = Inspector::default();
    for pid in all.into_iter().take_while(|_| !is_stopped(stop)) {
        // It may have ended, or may not be looked into.
        for one in inspector.inspect(pid).unwrap_or_default() {
            if let Some(reason) = one.reason {
                sink.detail(&format!(
                    "{} of process {pid} cannot be watched: {}: {reason}",
                    one.file, one.implementation
                ));
            }
        }
    }
    inspector.tell(sink);
    Ok(())
}

/// Why the kernel does not tell which files are mapped.
pub(super) fn explain_events(err: &std::io::Error) -> String {
    if err.kind() != std::io::ErrorKind::PermissionDenied {
        return err.to_string();
    }
    if Capabilities::effective().has(Capability::Perfmon) {
        return format!(
            "kernel.perf_event_paranoid wants {} for that",
            Capability::SysAdmin
        );
    }
    format!("{} is missing", Capability::Perfmon)
}

/// Why there is nothing to do.
pub(super) fn nothing_to_watch(found: &Found) -> anyhow::Error {
    let folders: Vec<_> = discover::library_folders()
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    anyhow!(
        "nothing to watch: no file defines SSL_read or SSL_write, of {} that processes execute from \
         and of libssl.so* in {}; name one with --lib",
        found.examined,
        folders.join(", ")
    )
}

/// Says that libraries were found and are not watched.
pub(super) fn report(skipped: &Skips, sink: &Stdout) {
    for one in &skipped.named {
        sink.detail(&format!("cannot probe {}: {}", one.path, one.reason));
    }
    if let Some(first) = skipped.named.first() {
        let more = match skipped.len() {
            1 => String::new(),
            many => format!(" (and {} more)", many - 1),
        };
        sink.note(&format!(
            "cannot probe {}: {}{more}; the other libraries are watched",
            first.path, first.reason
        ));
    }
}
