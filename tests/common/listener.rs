//! A listener on a port that the system chooses, for the stubs and proxies.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Accepts connections until it is dropped.
pub struct TestListener {
    pub address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl TestListener {
    /// Calls `accept` for each connection, on the listener's thread.
    pub fn start(mut accept: impl FnMut(TcpStream) + Send + 'static) -> TestListener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&stopped);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                accept(stream);
            }
        });
        TestListener { address, stopped }
    }
}

impl Drop for TestListener {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread, so that it closes the listener.
        let _ = TcpStream::connect(self.address);
    }
}
