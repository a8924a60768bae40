// SPDX-License-Identifier: BSD-2-Clause

//! What is made of events besides their lines: exchanges of HTTP, files, the live view. Each is
//! there only if it was asked for.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use time::OffsetDateTime;

use super::Args;
use super::event::{Close, Data};
use super::files::Output;
use super::har::{self, Har};
use super::http::{Http, NotHttp};
use super::keylog::{Key, KeyLog, Pending};
use super::live::{self, Live};
use super::pcap::Pcap;
use crate::failure::Failure;
use crate::output::Sink;

/// All of them.
#[derive(Debug, Default)]
pub struct Views {
    http: Option<Http>,
    /// Exchanges are shown as lines, in place of what calls moved.
    lines: bool,
    pcap: Option<(Output, Pcap<BufWriter<File>>)>,
    har: Option<(Output, Har<BufWriter<File>>)>,
    keylog: Option<(Output, KeyLog<BufWriter<File>>)>,
    live: Option<Live>,
}

impl Views {
    /// Those that `args` ask for; makes their files.
    ///
    /// # Errors
    /// [`Failure::Usage`] if a file cannot be made.
    pub fn of(args: &Args) -> Result<Self, Failure> {
        let failed =
            |output: &Output, err: &io::Error| Failure::usage(output.named(err).to_string());
        let mut views = Self {
            lines: args.http,
            ..Self::default()
        };
        if let Some(path) = &args.pcap {
            let (output, writer) = Output::create("--pcap", path)?;
            let mut pcap =
                Pcap::new(writer, args.show_secrets).map_err(|err| failed(&output, &err))?;
            pcap.flush().map_err(|err| failed(&output, &err))?;
            views.pcap = Some((output, pcap));
        }
        if let Some(path) = &args.har {
            let (output, writer) = Output::create("--har", path)?;
            let har = Har::new(writer).map_err(|err| failed(&output, &err))?;
            views.har = Some((output, har));
        }
        if let Some(path) = &args.keylog {
            let (output, writer) = Output::create("--keylog", path)?;
            views.keylog = Some((output, KeyLog::new(writer)));
        }
        if args.http || args.har.is_some() || args.live {
            let keep = match (&args.har, args.live) {
                (Some(_), _) => har::BODY,
                (None, true) => live::BODY,
                (None, false) => 0,
            };
            views.http = Some(Http::new(keep, args.show_secrets));
        }
        Ok(views)
    }

    /// Files stay from now on, whatever comes.
    pub fn keep(&mut self) {
        let pcap = self.pcap.as_mut().map(|(output, _)| output);
        let har = self.har.as_mut().map(|(output, _)| output);
        let keylog = self.keylog.as_mut().map(|(output, _)| output);
        for output in [pcap, har, keylog].into_iter().flatten() {
            output.keep();
        }
    }

    /// Takes the terminal over; everything that is shown is on the screen from now on.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn open_screen(&mut self, color: bool) -> io::Result<()> {
        self.live = Some(Live::open(color)?);
        Ok(())
    }

    /// Gives the terminal back.
    pub fn close_screen(&mut self) {
        self.live = None;
    }

    /// Whether the terminal is taken over.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Whether lines tell how connections come and go, and not only what was asked on them.
    pub fn shows_steps(&self) -> bool {
        !self.lines
    }

    /// Does what was typed, and draws; says whether that is to end.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn tick(&mut self) -> io::Result<bool> {
        self.live.as_mut().map_or(Ok(false), Live::tick)
    }

    /// What a call read or wrote; says whether it is to be shown as a line.
    ///
    /// # Errors
    /// Those of the files and of `sink`.
    pub fn data(
        &mut self,
        time: OffsetDateTime,
        data: &Data<'_>,
        sink: &mut Sink<impl Write>,
    ) -> io::Result<bool> {
        if let Some((output, pcap)) = &mut self.pcap {
            let written = pcap.data(time, data);
            written.map_err(|err| output.named(&err))?;
        }
        if let Some(http) = &mut self.http {
            http.data(time, data);
        }
        if let Some(live) = &mut self.live {
            live.data(time, data);
        }
        self.exchanges(time, sink)?;
        Ok(!self.lines && self.live.is_none())
    }

    /// A connection was freed; says whether that is to be shown as a line.
    ///
    /// # Errors
    /// Those of the files and of `sink`.
    pub fn close(
        &mut self,
        time: OffsetDateTime,
        close: &Close<'_>,
        sink: &mut Sink<impl Write>,
    ) -> io::Result<bool> {
        let missing = [close.read_missing, close.written_missing];
        if let Some((output, pcap)) = &mut self.pcap {
            let written = pcap.close(time, close.connection, missing);
            written.map_err(|err| output.named(&err))?;
        }
        if let Some(live) = &mut self.live {
            live.close(time, close);
        }
        let Some(http) = &mut self.http else {
            return Ok(true);
        };
        let spoken = http.close(time, close.connection, missing);
        self.exchanges(time, sink)?;
        if self.lines && !spoken && (close.read > 0 || close.written > 0) {
            let event = NotHttp {
                connection: close.connection,
                read: close.read,
                written: close.written,
                who: close.who,
            };
            sink.event(time, &event)?;
        }
        Ok(!self.lines)
    }

    /// A key was derived for a connection; it waits in `pending` until the client's random number is known.
    ///
    /// # Errors
    /// Those of the file.
    pub fn key(
        &mut self,
        key: Key,
        random: Option<[u8; 32]>,
        pending: &mut Vec<Pending>,
    ) -> io::Result<()> {
        let Some((output, keylog)) = &mut self.keylog else {
            return Ok(());
        };
        let written = keylog.key(key, random, pending);
        written.map_err(|err| output.named(&err))
    }

    /// The client's random number is known.
    ///
    /// # Errors
    /// Those of the file.
    pub fn settle(&mut self, random: &[u8; 32], pending: &mut Vec<Pending>) -> io::Result<()> {
        let Some((output, keylog)) = &mut self.keylog else {
            return Ok(());
        };
        let written = keylog.settle(random, pending);
        written.map_err(|err| output.named(&err))
    }

    /// Shows the exchanges that have come to their end.
    fn exchanges(&mut self, time: OffsetDateTime, sink: &mut Sink<impl Write>) -> io::Result<()> {
        let Some(http) = &mut self.http else {
            return Ok(());
        };
        for exchange in http.done() {
            if self.lines {
                sink.event(exchange.start().unwrap_or(time), &exchange)?;
            }
            if let Some((output, har)) = &mut self.har {
                har.exchange(&exchange).map_err(|err| output.named(&err))?;
            }
            if let Some(live) = &mut self.live {
                live.exchange(time, exchange);
            }
        }
        Ok(())
    }

    /// Sends on what is buffered.
    ///
    /// # Errors
    /// Those of the files.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some((output, pcap)) = &mut self.pcap {
            pcap.flush().map_err(|err| output.named(&err))?;
        }
        if let Some((output, har)) = &mut self.har {
            har.flush().map_err(|err| output.named(&err))?;
        }
        if let Some((output, keylog)) = &mut self.keylog {
            keylog.flush().map_err(|err| output.named(&err))?;
        }
        Ok(())
    }

    /// The run is at its end: what is under way is shown as such, and files are finished.
    ///
    /// # Errors
    /// Those of the files and of `sink`.
    pub fn finish(&mut self, time: OffsetDateTime, sink: &mut Sink<impl Write>) -> io::Result<()> {
        if let Some(http) = &mut self.http {
            http.finish(time);
        }
        self.exchanges(time, sink)?;
        if let Some((output, har)) = &mut self.har {
            har.finish().map_err(|err| output.named(&err))?;
        }
        self.flush()
    }
}
