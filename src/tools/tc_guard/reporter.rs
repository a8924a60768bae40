// SPDX-License-Identifier: BSD-2-Clause

//! From what the kernel reports to lines, and what else a running guard has to say.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use time::OffsetDateTime;

use super::NAME;
use super::event::{InterfaceEvent, Ready, Summary, VerdictEvent};
use super::guard::Guard;
use super::hold::Change;
use super::outlet::{Lines, Outlet};
use super::pinned;
use super::plan::Plan;
use super::report::{Reported, Sample, Tally};
use crate::kernel::clock;
use crate::kernel::interfaces::Interface;
use crate::output::{self, Event as _, Format, Line, Printable, Settings, Sink};
use crate::process::Directory;

/// Tells of what a guard does.
pub struct Reporter {
    sink: Sink<Lines>,
    out: Outlet,
    errors: Outlet,
    /// What has been told of.
    pub tally: Tally,
    directory: Directory,
    /// Names of the endpoints of each generation of the policy.
    endpoints: HashMap<u16, Vec<String>>,
    /// The interfaces that there are, for their names.
    pub interfaces: Vec<Interface>,
    /// Where the guard is pinned: another process may give it another policy.
    bpffs: Option<PathBuf>,
    /// Whether it was said that lines cannot be written.
    complained: bool,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

impl Reporter {
    /// One that writes to standard output and standard error, of a guard that is pinned in `bpffs`.
    ///
    /// # Errors
    /// If no thread or descriptor is left.
    pub fn new(
        settings: Settings,
        cgroup_root: Option<&Path>,
        bpffs: Option<&Path>,
    ) -> Result<Self> {
        let out = Outlet::new(io::stdout())?;
        Ok(Self {
            sink: Sink::new(NAME, settings, output::colored(settings), out.writer()),
            out,
            errors: Outlet::new(io::stderr())?,
            tally: Tally::default(),
            directory: Directory::new(cgroup_root.map(Path::to_owned)),
            endpoints: HashMap::new(),
            interfaces: Vec::new(),
            bpffs: bpffs.map(Path::to_owned),
            complained: false,
        })
    }

    /// Becomes readable when lines could not be written: [`Reporter::look`] says more.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.out.fd()
    }

    /// Says that the guard is at work.
    ///
    /// # Errors
    /// If the pipe is closed.
    pub fn ready(&mut self, event: &Ready) -> Result<()> {
        Ok(self.sink.ready(event)?)
    }

    /// Tells the person at the terminal something that is no result; in line with what else is told.
    pub fn note(&self, text: &str) {
        if !self.sink.settings().quiet {
            let line = format!("ebpfkit: {NAME}: {}\n", Printable(text));
            // Who has closed standard error wants to hear nothing.
            let _ = self.errors.writer().write_all(line.as_bytes());
        }
    }

    fn detail(&self, text: &str) {
        if self.sink.settings().verbose > 0 {
            self.note(text);
        }
    }

    /// Writes the last line and waits until all lines are out, if anybody reads them.
    ///
    /// # Errors
    /// If any could not be written.
    pub fn end(&mut self, summary: Summary) -> Result<()> {
        let summary = Summary {
            unwritten: self.out.unwritten(),
            ..summary
        };
        if self.sink.settings().format == Format::Json {
            let told = self.sink.summary(&summary);
            self.written(told)?;
        } else {
            let mut text = Vec::new();
            summary.text(&mut Line::new(&mut text, false))?;
            self.note(&String::from_utf8_lossy(&text));
        }
        self.out.finish();
        let error = self.look();
        self.errors.finish();
        error?;
        match self.out.unwritten() {
            0 => Ok(()),
            lines => bail!("{lines} lines could not be written to standard output"),
        }
    }

    /// Lets what was noted out.
    pub fn finish(&self) {
        self.errors.finish();
    }

    /// Looks whether lines could be written. Only a closed pipe ends the guard: whoever can fill the disk
    /// that its lines go to must not be able to open the way.
    ///
    /// # Errors
    /// If the pipe is closed.
    pub fn look(&mut self) -> Result<()> {
        match self.out.error() {
            None => Ok(()),
            Some(err) if err.kind() == io::ErrorKind::BrokenPipe => Err(err.into()),
            Some(err) => {
                self.complain(&err);
                Ok(())
            }
        }
    }

    fn complain(&mut self, why: &dyn std::fmt::Display) {
        if !self.complained {
            self.note(&format!("cannot write ({why}); guarding on without"));
            self.complained = true;
        }
    }

    fn written(&mut self, result: io::Result<()>) -> Result<()> {
        result?;
        // In this order: an error is there as soon as the lines that it took are counted, and says more.
        let unwritten = self.out.unwritten();
        self.look()?;
        if unwritten > 0 {
            self.complain(&"nobody reads what was written");
        }
        Ok(())
    }

    /// Tells of an interface: of one that cannot be guarded aloud, else for who wants to know.
    ///
    /// # Errors
    /// If the pipe is closed.
    pub fn change(&mut self, change: &Change) -> Result<()> {
        if let Change::Failed(interface, err) = change {
            self.note(&format!("{} is not guarded: {err:#}", interface.name));
        }
        if self.sink.settings().format == Format::Text {
            let event = InterfaceEvent::from(change);
            self.detail(&format!("{}: {}", event.interface, event.change));
            return Ok(());
        }
        let told = self
            .sink
            .event(OffsetDateTime::now_utc(), &InterfaceEvent::from(change));
        self.written(told)
    }

    /// The names of a policy's endpoints, for its reports.
    pub fn know(&mut self, generation: u16, plan: &Plan) {
        let names = plan.endpoints.iter();
        let names = names.map(|target| target.endpoint.name.clone()).collect();
        self.endpoints.insert(generation, names);
    }

    /// Tells of what the kernel has sent.
    ///
    /// # Errors
    /// If it is no such record, or the pipe is closed.
    pub fn record(&mut self, record: &[u8]) -> Result<()> {
        let sample = Sample::from_bytes(record)?;
        let time = clock::wall(sample.time_ns);
        match self.tally.sample(sample) {
            Some(reported) => self.tell(time, &reported),
            None => Ok(()),
        }
    }

    /// Tells of what the table knows and no record told; says whether there was any.
    ///
    /// # Errors
    /// If the kernel does not give it, or the pipe is closed.
    pub fn sweep(&mut self, kernel: &Guard) -> Result<bool> {
        let mut any = false;
        for (key, total) in kernel.reports()? {
            if let Some(reported) = self.tally.total(key, total) {
                self.tell(OffsetDateTime::now_utc(), &reported)?;
                any = true;
            }
        }
        let mut dropped = Vec::new();
        kernel.make_room(
            |key, total| self.tally.knows(key, total),
            |key| dropped.push(key),
        )?;
        for key in dropped {
            self.tally.forget(key);
        }
        Ok(any)
    }

    fn tell(&mut self, time: OffsetDateTime, reported: &Reported) -> Result<()> {
        let interface = |index| {
            let found = self
                .interfaces
                .iter()
                .find(|i| u32::try_from(i.index) == Ok(index));
            found.map(|interface| interface.name.clone())
        };
        let generation = reported.key.generation;
        if !self.endpoints.contains_key(&generation)
            && let Some(names) = self
                .bpffs
                .as_deref()
                .and_then(|at| pinned::names(at, generation))
        {
            self.endpoints.insert(generation, names);
        }
        let names = self.endpoints.get(&generation);
        let endpoint = names.and_then(|names| names.get(reported.key.endpoint));
        let endpoint = endpoint.map_or("", String::as_str);
        let event = VerdictEvent::new(reported, endpoint, interface, &mut self.directory);
        let told = self.sink.event(time, &event);
        self.written(told)
    }
}
