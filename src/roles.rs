//! The two roles from start to end; on SIGTERM [`stop`] drains (`src/server/drain.rs`: executions may finish for three
//! quarters of the time, then they are canceled) and stops the servers. `serve` starts a backend in the same process
//! unless it has the URL of another.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use actix_web::dev::ServerHandle;
use cc_executor::{
    backend::{
        self, BackendConfig, Serving,
        storage::{
            StateDir, StateDirError,
            location::{StateLocation, StateVariables, default_directory},
        },
    },
    config::{BackendLocation, BackendSettings, ConnectionSettings, GatewaySettings, RemoteBackend, TOKEN},
    console,
    gateway::{self, GatewayConfig},
    logging,
    server::{
        admission::ConnectionBounds,
        auth::Access,
        authentication::Authentication,
        drain::{Drainable, drain},
        failure::failed,
        peer_user,
        peers::Peers,
        secret::Secret,
        shutdown::{self, Shutdown},
        tokens::Tokens,
    },
};
use cc_executor_actors::dial::DialConfig;
use log::{info, warn};

/// Prepares this process for a role, logs warnings of variables that have no effect, and runs the role to its end.
pub fn run(log_format: logging::Format, warnings: &[String], role: impl Future<Output = io::Result<()>>) -> ExitCode {
    // The parent may have blocked or ignored signals that the service needs, and commands would inherit that.
    shutdown::reset();
    let _flush = match logging::init(log_format) {
        Ok(flush) => flush,
        Err(error) => {
            console::report(format_args!("cannot start the thread that writes the log: {error}"));
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        warn!(event = "settings.unknown"; "{warning}");
    }
    run_prepared(role)
}

fn run_prepared(role: impl Future<Output = io::Result<()>>) -> ExitCode {
    // Commands run as the same user: they must not read our environment or memory from /proc.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        logging::report(format_args!(
            "cannot make this process non-dumpable, so commands could read its secrets: {error}"
        ));
        return ExitCode::FAILURE;
    }
    raise_descriptor_limit();
    match actix::System::new().block_on(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let is_usage = error.get_ref().is_some_and(|inner| inner.is::<StateDirError>());
            logging::report(error);
            if is_usage { ExitCode::from(console::EX_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Opens the state directory of a backend that listens here. A directory that was named must be usable; without the
/// default one the backend keeps output in memory.
fn open_state_dir(location: &StateLocation, address: SocketAddr, port: u16) -> io::Result<Option<Arc<StateDir>>> {
    let holder = format!("process {} ({address})", std::process::id());
    match location {
        StateLocation::None => Ok(None),
        StateLocation::At(path) => StateDir::open(path, &holder).map(Some).map_err(io::Error::other),
        StateLocation::Default => {
            let Some(path) = default_directory(&StateVariables::of_process(), port) else {
                if port != 0 {
                    warn!(event = "storage.none"; "there is no HOME, so nothing is kept on disk: name a directory with --state-dir, or none");
                }
                return Ok(None);
            };
            let opened = StateDir::open(&path, &holder);
            Ok(opened.inspect_err(|error| warn!(event = "storage.none"; "nothing is kept on disk: {error}")).ok())
        }
    }
}

/// Raises the limit of open files, because each session takes two and many systems start with a soft limit of 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it cannot be raised, the service runs with the limit that it has.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The number of files that this process may open.
fn descriptor_limit() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Binds the address of a role, begins to watch its tokens file, and warns of what weakens its protection.
fn bind(address: SocketAddr, access: &Access, warnings: &[String]) -> io::Result<TcpListener> {
    for warning in warnings {
        warn!(event = "service.insecure"; "{warning}");
    }
    let listener = TcpListener::bind(address).map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::AddrInUse => "stop the process that listens there, or choose another address with --bind",
            _ => "choose an address of this machine and a port above 1023 with --bind",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}; {advice}"))
    })?;
    let is_local = address.ip().to_canonical().is_loopback();
    match &access.authentication {
        Authentication::Tokens(tokens) => {
            if let Some(file) = tokens.file() {
                actix::spawn(Arc::clone(file).watch());
            }
        }
        Authentication::LocalUsers(_) => peer_user::check(address.ip()).map_err(|error| {
            io::Error::other(format!(
                "without a token the service accepts users by name, and cannot find out the user of a connection: {error}; set {TOKEN}, or pass --tokens-file, or accept all local users with --allow-local-users all"
            ))
        })?,
        Authentication::Nothing if is_local => {}
        Authentication::Nothing => {
            warn!(event = "service.insecure", address:% = address; "no token: anyone who reaches {address} can run commands here");
        }
    }
    Ok(listener)
}

/// The address of a bound listener, whose port the system may have chosen.
fn address_of(listener: &TcpListener) -> io::Result<SocketAddr> {
    listener.local_addr().map_err(failed("cannot read the address of the listener"))
}

/// Warns if commands run as root, because these can read the memory of every process.
fn warn_of_root() {
    if rustix::process::geteuid().is_root() {
        warn!(event = "service.root"; "commands run as root: they can read the service's tokens from /proc and change everything on this machine; start the service as a user of its own (systemd: User=, docker: --user)");
    }
}

/// Runs the role `serve` until a signal stops it.
pub async fn serve(config: GatewaySettings) -> io::Result<()> {
    let mut shutdown = Shutdown::listen()?;
    let listener = bind(config.bind, &config.access, &config.warnings)?;
    let address = address_of(&listener)?;
    let (backend, remote) = match config.backend {
        BackendLocation::Remote(remote) => (None, remote),
        BackendLocation::Embedded(backend) => {
            warn_of_root();
            let state_dir = open_state_dir(&backend.state, address, config.bind.port())?;
            let (url, token, embedded) = embed(*backend, state_dir, &config.connections)?;
            (Some(embedded), RemoteBackend { url, token: Some(token), dial: DialConfig::default() })
        }
    };
    let ConnectionSettings { request_timeout, max_unauthorized } = config.connections;
    let bounds = ConnectionBounds::of_gateway(descriptor_limit(), max_unauthorized, request_timeout);
    if bounds.authorized < config.sessions.sessions {
        warn!(event = "service.few_descriptors", descriptors = descriptor_limit(), sessions = bounds.authorized;
            "the limit of open files (ulimit -n) allows only {} sessions, not {}", bounds.authorized, config.sessions.sessions);
    }
    info!(event = "service.listening", role = "gateway", address:% = address, backend = remote.url.as_str(),
        embedded = backend.is_some(), containment:serde = backend.as_ref().map(|backend| backend.contained), version = env!("CARGO_PKG_VERSION"); "listening on ws://{address}/ws/mcp");
    let gateway = GatewayConfig {
        backend_url: remote.url,
        backend_token: remote.token,
        dial: remote.dial,
        sessions: config.sessions,
        limits: config.limits,
        intake: config.intake,
        claude_exit: config.claude_exit,
        executions_live_on: backend.is_none(),
    };
    let access = Access { port: address.port(), ..config.access };
    let gateway = gateway::serve(listener, gateway, access, Peers::new(bounds))?;
    let mut servers = vec![gateway.server.clone()];
    let mut roles: Vec<Box<dyn Drainable>> = vec![Box::new(gateway)];
    if let Some(Serving { server, registry, .. }) = backend {
        servers.push(server);
        roles.push(Box::new(registry.into_inner()));
    }
    stop(&mut shutdown, "gateway", roles, config.drain, servers).await;
    Ok(())
}

/// Runs the role `backend` until a signal stops it.
pub async fn backend(config: BackendSettings) -> io::Result<()> {
    let mut shutdown = Shutdown::listen()?;
    let listener = bind(config.bind, &config.access, &config.warnings)?;
    warn_of_root();
    let address = address_of(&listener)?;
    let access = Access { port: address.port(), ..config.access };
    let executors = config.backend.executors.names();
    let ConnectionSettings { request_timeout, max_unauthorized } = config.connections;
    let bounds = ConnectionBounds::of_backend(descriptor_limit(), max_unauthorized, request_timeout);
    let state_dir = open_state_dir(&config.backend.state, address, config.bind.port())?;
    let serving = backend::serve(listener, config.backend, state_dir, access, Peers::new(bounds))?;
    let Serving { server, registry, contained } = serving;
    info!(event = "service.listening", role = "backend", address:% = address, executors:serde = executors,
        containment = contained, version = env!("CARGO_PKG_VERSION"); "listening on http://{address}");
    let roles: Vec<Box<dyn Drainable>> = vec![Box::new(registry.into_inner())];
    stop(&mut shutdown, "backend", roles, config.drain, vec![server]).await;
    Ok(())
}

/// Starts a backend on a loopback port of its own, with a token that only this process knows.
fn embed(
    config: BackendConfig,
    state_dir: Option<Arc<StateDir>>,
    connections: &ConnectionSettings,
) -> io::Result<(String, Secret, Serving)> {
    let listener =
        TcpListener::bind("127.0.0.1:0").map_err(failed("cannot open a loopback port for the embedded backend"))?;
    let address = address_of(&listener)?;
    let token = Secret::random().map_err(failed("cannot make the token of the embedded backend"))?;
    let access = Access {
        authentication: Authentication::Tokens(Tokens::single(token.fingerprint())),
        allowed_hosts: Vec::new(),
        allowed_origins: Vec::new(),
        port: address.port(),
        serves_gateways: true,
    };
    let bounds =
        ConnectionBounds::of_embedded(descriptor_limit(), connections.max_unauthorized, connections.request_timeout);
    let embedded = backend::serve(listener, config, state_dir, access, Peers::new(bounds))?;
    Ok((format!("http://{address}"), token, embedded))
}

/// Waits for a signal, and drains the roles. A second signal cuts the drain short: the subreaper and its shims end
/// their process trees when this process is gone.
async fn stop(
    shutdown: &mut Shutdown,
    role: &str,
    roles: Vec<Box<dyn Drainable>>,
    patience: Duration,
    servers: Vec<ServerHandle>,
) {
    let signal = shutdown.next().await;
    info!(event = "service.stopping", role = role, signal = signal; "stopping on {signal}");
    tokio::select! {
        () = drain(roles, patience) => {}
        signal = shutdown.next() => {
            warn!(event = "drain.cut", role = role, signal = signal; "second signal {signal}: stopping at once");
        }
    }
    logging::stopping();
    for server in servers {
        // A graceful stop would wait for idle keep-alive connections; executions and sessions were drained before.
        server.stop(false).await;
    }
    info!(event = "service.stopped", role = role; "stopped");
}
