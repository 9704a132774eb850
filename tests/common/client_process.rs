//! A command of the binary as a child process, whose output is read while it runs.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::{PATIENCE, service::wait_for_exit, wait_until};

/// A running command. It is killed when dropped.
pub struct ClientProcess {
    child: Child,
    /// Standard error so far.
    stderr: Arc<Mutex<String>>,
}

impl ClientProcess {
    pub fn start(command: &mut Command) -> ClientProcess {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (reader, so_far) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&stderr));
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                *so_far.lock().unwrap() += &format!("{line}\n");
            }
        });
        ClientProcess { child, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout(&mut self) -> &mut ChildStdout {
        self.child.stdout.as_mut().expect("stdout is piped")
    }

    /// Waits until the command has written exactly this to standard output.
    pub fn expect_stdout(&mut self, text: &str) {
        let mut bytes = vec![0; text.len()];
        self.stdout().read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    /// The next line of standard output.
    pub fn read_line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') && self.stdout().read(&mut byte).unwrap() == 1 {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Waits until standard error contains this.
    pub fn wait_for_stderr(&self, part: &str, within: Duration) {
        wait_until(&format!("{part:?} on standard error"), within, || self.stderr.lock().unwrap().contains(part));
    }

    /// Waits for the exit, and returns the rest of standard output, standard error, and the exit code.
    pub fn finish(mut self, within: Duration) -> (String, String, i32) {
        let status = wait_for_exit(&mut self.child, within);
        let mut stdout = String::new();
        self.stdout().read_to_string(&mut stdout).unwrap();
        wait_until("standard error is read", PATIENCE, || Arc::strong_count(&self.stderr) == 1);
        let stderr = self.stderr.lock().unwrap().clone();
        (stdout, stderr, status.code().expect("not ended by a signal"))
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}
