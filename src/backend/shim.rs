//! The shim: a small process beside each execution that ends the whole process tree in every case.
//!
//! The [subreaper](super::subreaper) forks it. The kernel gives it the orphans of its own tree
//! (PR_SET_CHILD_SUBREAPER): descendants that lose their parent, also those that left the process group, become its
//! children. So the tree is gone exactly when wait(2) returns ECHILD. That is a proof; a scan of /proc is not.
//!
//! It reads its orders from a socket (see [`protocol`]) and acknowledges each. It kills the tree at once when that
//! socket ends, because the backend died or has given the execution up, and when its lifeline ends, because the
//! subreaper died. It blocks only in `Shim::wait`.

pub mod cgroup;
mod channel;
pub mod containment;
mod pause;
pub mod procfs;
pub mod protocol;
pub mod readable;
pub mod spawn;
pub mod tree;
mod usage;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::Evidence;
use rustix::process::{Pid, Signal, set_child_subreaper, set_parent_process_death_signal};

use self::{
    cgroup::{
        Cgroup, CgroupDirectories,
        memory::{MemoryAccount, OomCounter},
    },
    channel::Channel,
    pause::{PauseState, PauseStep},
    procfs::Procfs,
    protocol::{LeaderExit, Order, ShimEvent, StartError, TreeGone},
    readable::{Waiter, discard_signals},
    spawn::{CommandEnds, StartingChild},
    tree::ProcessTree,
};
use crate::syscall::{SingleThread, block_signals};

/// How long KILL is repeated before the remaining processes count as survivors: set-user-ID processes of
/// another user, or processes that the kernel holds in an uninterruptible wait.
const KILL_PATIENCE: Duration = Duration::from_secs(4);

/// The interval between two steps of a pause, or two rounds of KILL.
const STEP: Duration = Duration::from_millis(1);

/// What a forked shim inherits from the subreaper.
pub struct ShimInheritance {
    /// The socket to its backend.
    pub socket: OwnedFd,
    /// The command's ends of its pipes or its terminal.
    pub ends: CommandEnds,
    /// Reaches its end of file when the subreaper ends.
    pub lifeline: OwnedFd,
    /// With cgroups: the directories of the subreaper, and the name of the execution's cgroup in them.
    pub cgroup: Option<(CgroupDirectories, String)>,
    /// The processes of the service's cgroup that were killed because memory ran out, where they are counted.
    pub oom_counter: Option<OomCounter>,
    /// Whether this is the first process of a PID namespace.
    pub is_first: bool,
}

/// Runs one command to its end. Returns when its whole tree is gone: true if that is proven.
pub fn main(single: &SingleThread, inherited: ShimInheritance) -> io::Result<bool> {
    let ShimInheritance { socket, ends, lifeline, cgroup, oom_counter, is_first } = inherited;
    // CONT, so that a stopped shim wakes when the subreaper dies, and reads the end of its lifeline.
    set_parent_process_death_signal(Some(Signal::CONT))?;
    set_child_subreaper(Some(Pid::INIT))?;
    // The name that ps shows. Without it the shim still works.
    let _ = rustix::thread::set_name(c"cc-shim");
    let mut channel = Channel::new(socket);
    let prepared = prepare(cgroup, oom_counter, is_first);
    let Some(Order::Run(spec)) = channel.wait()? else { return Ok(true) };
    let started = prepared.and_then(|prepared| {
        let starting = spawn::start(single, &spec, ends, (prepared.cgroup.as_ref(), &prepared.memory))?;
        Ok((prepared, starting))
    });
    let (Prepared { waiter, signals, procfs, cgroup, memory }, starting) = match started {
        Ok(started) => started,
        Err(error) => {
            channel.send(&ShimEvent::NotStarted(StartError::no_process(error)));
            return Ok(true);
        }
    };
    let shim = Shim {
        tree: ProcessTree::new(starting.leader),
        command: CommandState::Starting(starting),
        channel: Some(channel),
        lifeline: Some(lifeline),
        waiter,
        signals,
        procfs,
        cgroup,
        memory,
        end: EndState::Running,
        pause: PauseState::default(),
        unanswered_pauses: 0,
    };
    shim.run()
}

/// The descriptors that a shim opens before its command runs, because the command may lower the shim's limit of them.
struct Prepared {
    waiter: Waiter,
    signals: OwnedFd,
    procfs: Procfs,
    cgroup: Option<Cgroup>,
    memory: MemoryAccount,
}

fn prepare(
    cgroup: Option<(CgroupDirectories, String)>,
    oom_counter: Option<OomCounter>,
    is_first: bool,
) -> io::Result<Prepared> {
    if is_first {
        containment::mount_proc()?;
    }
    let (directories, name) = cgroup.unzip();
    let name = name.unwrap_or_default();
    let memory_base = directories.as_ref().and_then(|directories| directories.memory.as_deref());
    let cgroup = directories.as_ref().map(|directories| Cgroup::make(&directories.unified, &name)).transpose()?;
    Ok(Prepared {
        memory: MemoryAccount::open(cgroup.as_ref().map(Cgroup::directory), memory_base, &name, oom_counter),
        cgroup,
        procfs: Procfs::open()?,
        waiter: Waiter::open()?,
        signals: block_signals(&[Signal::CHILD, Signal::CONT])?,
    })
}

/// How far the command has come.
enum CommandState {
    /// The process is forked, and has not executed the command yet.
    Starting(StartingChild),
    /// It runs, or has ended.
    Executed,
    /// The command could not be executed, which was reported.
    NotExecuted,
}

/// How far the end of the tree has come. [`Shim::run`] takes the steps in this order.
enum EndState {
    /// The end was not ordered yet.
    Running,
    /// TERM was sent; KILL follows at this time.
    Terminating { kill_at: Instant },
    /// KILL is repeated until no child is left, or until [`KILL_PATIENCE`] is over.
    Killing { since: Instant },
}

struct Shim {
    tree: ProcessTree,
    command: CommandState,
    channel: Option<Channel>,
    lifeline: Option<OwnedFd>,
    waiter: Waiter,
    signals: OwnedFd,
    procfs: Procfs,
    cgroup: Option<Cgroup>,
    memory: MemoryAccount,
    end: EndState,
    pause: PauseState,
    unanswered_pauses: u32,
}

impl Shim {
    /// Returns when no child is left. Each turn waits for an event, or kills and reaps. A process that cannot be killed
    /// delays it for [`KILL_PATIENCE`] only.
    fn run(mut self) -> io::Result<bool> {
        loop {
            let exit = self.tree.reap()?;
            if let Some(exit) = exit {
                self.on_leader_exit(exit);
            }
            if self.tree.is_gone() {
                let usage = usage::of_reaped(self.memory.peak_bytes());
                return Ok(self.finish(TreeGone { usage, ..TreeGone::proven(Evidence::Echild) }));
            }
            let mut timeout = None;
            match self.end {
                EndState::Running => {}
                EndState::Terminating { kill_at } => {
                    self.tree.terminate_new_children(&self.procfs);
                    let left = kill_at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.end = EndState::Killing { since: Instant::now() };
                        continue;
                    }
                    timeout = Some(left);
                }
                EndState::Killing { since } => {
                    let left = self.kill();
                    if since.elapsed() > KILL_PATIENCE {
                        return Ok(self.finish(TreeGone { survivors: left.ok(), ..TreeGone::UNKNOWN }));
                    }
                    timeout = Some(STEP);
                }
            }
            if self.step_pause() {
                timeout = Some(timeout.map_or(STEP, |other| other.min(STEP)));
            }
            self.wait(timeout)?;
        }
    }

    fn kill(&mut self) -> io::Result<u32> {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        self.tree.kill(&self.procfs)
    }

    /// Reports the end, with the counts of the tree.
    fn finish(&mut self, gone: TreeGone) -> bool {
        let gone = TreeGone { killed: self.tree.n_killed(), oom_kills: self.memory.oom_kills(), ..gone };
        if !matches!(self.command, CommandState::NotExecuted) {
            self.send(&ShimEvent::Gone(gone));
        }
        gone.evidence.is_proof()
    }

    /// Reports the exit of the leader if it has executed the command. The exec report shows whether it has, and is
    /// complete, because the process that wrote it has ended.
    fn on_leader_exit(&mut self, exit: LeaderExit) {
        self.read_report();
        if matches!(self.command, CommandState::Executed) {
            self.send(&ShimEvent::Exited(exit));
        }
    }

    fn read_report(&mut self) {
        let starting = match std::mem::replace(&mut self.command, CommandState::Executed) {
            CommandState::Starting(starting) => starting,
            reported => {
                self.command = reported;
                return;
            }
        };
        let leader = starting.leader;
        match starting.read() {
            Ok(()) => self.send(&ShimEvent::Started { pid: leader.as_raw_nonzero().get() }),
            Err(error) => {
                self.command = CommandState::NotExecuted;
                self.send(&ShimEvent::NotStarted(error));
            }
        }
    }

    fn send(&mut self, event: &ShimEvent) {
        if let Some(channel) = &mut self.channel {
            channel.send(event);
        }
    }

    /// Waits for a child's end, an order, the exec report, or the time-out.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let report = match &self.command {
            CommandState::Starting(starting) => Some(starting.report()),
            CommandState::Executed | CommandState::NotExecuted => None,
        };
        let sources = [
            Some(self.signals.as_fd()),
            self.channel.as_ref().map(Channel::descriptor),
            self.lifeline.as_ref().map(AsFd::as_fd),
            report,
        ];
        let [signaled, ordered, lifeline_ended, reported] = self.waiter.wait_readable(sources, timeout)?;
        if signaled {
            // The loop looks up which children have ended.
            discard_signals(self.signals.as_fd());
        }
        if lifeline_ended {
            // The subreaper is gone, so nothing could end what this process leaves behind.
            self.lifeline = None;
            self.send(&ShimEvent::Unguarded);
            self.kill_now();
        }
        if reported {
            self.read_report();
        }
        if ordered { self.on_orders() } else { Ok(()) }
    }

    fn on_orders(&mut self) -> io::Result<()> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        if !channel.read()? {
            // The backend is gone or has given this execution up, so the tree is killed without a grace period.
            self.channel = None;
            self.kill_now();
            return Ok(());
        }
        while let Some(order) = self.channel.as_mut().and_then(Channel::next) {
            match order {
                Order::Run(_) => {}
                Order::Signal { signal } => self.tree.signal_group(signal.number()),
                Order::Pause => {
                    self.unanswered_pauses += 1;
                    self.pause.begin();
                }
                Order::Resume => {
                    self.end_pause();
                    self.send(&ShimEvent::Resumed);
                }
                Order::Inspect => {
                    let stopped = pause::is_stopped(self.tree.leader(), &self.procfs);
                    self.send(&ShimEvent::Inspected { stopped });
                }
                Order::End { grace_ms } => self.end_within(Duration::from_millis(grace_ms)),
                Order::Sweep => self.kill_now(),
            }
        }
        Ok(())
    }

    /// Takes a step of a pause that is under way. Returns true if another step is needed.
    fn step_pause(&mut self) -> bool {
        if self.unanswered_pauses == 0 {
            return false;
        }
        match self.pause.step(&self.procfs, self.cgroup.as_ref()) {
            PauseStep::Again => return true,
            PauseStep::Done => self.answer_pauses(&ShimEvent::Paused),
            PauseStep::Failed => self.end_pause(),
        }
        false
    }

    fn answer_pauses(&mut self, event: &ShimEvent) {
        for _ in 0..std::mem::take(&mut self.unanswered_pauses) {
            self.send(event);
        }
    }

    /// Continues the tree. A pause that was under way has failed.
    fn end_pause(&mut self) {
        self.pause.end(&self.procfs, self.cgroup.as_ref());
        self.answer_pauses(&ShimEvent::NotPaused);
    }

    /// Sends TERM now and KILL after the grace. A repeated order can only shorten the grace. CONT follows TERM, because
    /// a stopped process acts on TERM only when it is continued.
    fn end_within(&mut self, grace: Duration) {
        let kill_at = Instant::now() + grace;
        match &mut self.end {
            EndState::Running if grace.is_zero() => self.kill_now(),
            EndState::Running => {
                self.tree.terminate(&self.procfs);
                // Also to the group, because that needs no listing of the tree.
                self.tree.signal_group(Signal::CONT.as_raw());
                self.end_pause();
                self.end = EndState::Terminating { kill_at };
            }
            EndState::Terminating { kill_at: planned } => *planned = kill_at.min(*planned),
            EndState::Killing { .. } => {}
        }
    }

    fn kill_now(&mut self) {
        if !matches!(self.end, EndState::Killing { .. }) {
            self.end = EndState::Killing { since: Instant::now() };
        }
    }
}
