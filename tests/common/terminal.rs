//! A pseudo-terminal with a command on it, of which it is the controlling terminal.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, OutputModes, Termios, Winsize, tcgetattr, tcsetwinsize},
};

use super::{PATIENCE, service::wait_for_exit, wait_until};

/// A terminal and its command. The command is killed when this is dropped.
pub struct TestTerminal {
    child: Child,
    master: Option<File>,
    slave: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
    closes: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    before: Termios,
}

impl TestTerminal {
    /// Starts a command on a terminal of 24 rows and 80 columns.
    pub fn start(command: &Command) -> TestTerminal {
        TestTerminal::with_size(command, 24, 80)
    }

    pub fn with_size(command: &Command, rows: u16, cols: u16) -> TestTerminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let slave: OwnedFd = OpenOptions::new().read(true).write(true).open(path.to_str().unwrap()).unwrap().into();
        tcsetwinsize(&slave, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let before = tcgetattr(&slave).unwrap();
        // It does not fork, because a child of this process is not the leader of a process group.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(name, value),
                None => on_terminal.env_remove(name),
            };
        }
        let stdio = || slave.try_clone().unwrap();
        let child = on_terminal.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let (screen, closes) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let master: File = master.into();
        let (mut from, shown, is_over) = (master.try_clone().unwrap(), Arc::clone(&screen), Arc::clone(&closes));
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            while !is_over.load(Ordering::SeqCst) {
                match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&moment)) {
                    Ok(0) | Err(_) => {}
                    Ok(_) => match from.read(&mut buffer) {
                        Ok(n) if n > 0 => shown.lock().unwrap().extend_from_slice(&buffer[..n]),
                        _ => return,
                    },
                }
            }
        });
        TestTerminal { child, master: Some(master), slave, screen, closes, reader: Some(reader), before }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn type_keys(&mut self, keys: impl AsRef<[u8]>) {
        self.master.as_mut().expect("it is open").write_all(keys.as_ref()).unwrap();
    }

    /// Everything that was shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Forgets what was shown so far.
    pub fn clear(&self) {
        self.screen.lock().unwrap().clear();
    }

    /// Waits until this is shown.
    pub fn wait_for(&self, text: &str) {
        self.wait_for_within(text, PATIENCE);
    }

    pub fn wait_for_within(&self, text: &str, within: Duration) {
        let start = std::time::Instant::now();
        while !self.screen().contains(text) {
            assert!(start.elapsed() < within, "{text:?} is not shown: {:?}", self.screen());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the terminal is in raw mode, or is not.
    pub fn wait_for_raw(&self, is_raw: bool) {
        wait_until("the mode of the terminal changes", PATIENCE, || {
            tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ICANON) != is_raw
        });
    }

    /// Whether the terminal has the modes that it had at the start.
    pub fn is_restored(&self) -> bool {
        let now = tcgetattr(&self.slave).unwrap();
        let modes = |of: &Termios| (of.input_modes, of.output_modes, of.control_modes, of.local_modes);
        assert!(self.before.output_modes.contains(OutputModes::OPOST));
        modes(&now) == modes(&self.before)
    }

    /// Closes the terminal, as a window is closed.
    pub fn hang_up(&mut self) {
        self.closes.store(true, Ordering::SeqCst);
        self.reader.take().expect("it reads").join().unwrap();
        self.master = None;
    }

    /// Waits for the exit.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        wait_for_exit(&mut self.child, within)
    }

    /// Waits for the exit, and returns the exit code and everything that was shown.
    pub fn finish(mut self, within: Duration) -> (i32, String) {
        let start = std::time::Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < within, "it does not exit: {:?}", self.screen());
            thread::sleep(Duration::from_millis(2));
        }
        let status = self.wait(within);
        assert!(self.is_restored(), "the terminal is restored: {:?}", self.screen());
        // Everything was written before the exit, so what is readable now is the rest.
        let master = self.master.as_ref().unwrap();
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        wait_until("the screen is read", PATIENCE, || {
            poll(&mut [PollFd::new(master, PollFlags::IN)], Some(&none)).unwrap() == 0
        });
        self.closes.store(true, Ordering::SeqCst);
        self.reader.take().expect("it reads").join().unwrap();
        (status.code().expect("not ended by a signal"), self.screen())
    }
}

impl Drop for TestTerminal {
    fn drop(&mut self) {
        self.closes.store(true, Ordering::SeqCst);
        let _ = (self.child.kill(), self.child.wait());
    }
}
