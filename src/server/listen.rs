//! Serves HTTP/1.1 on a bound listener, over connections of our own ([`Socket`]), which `actix_web::HttpServer` does not
//! accept. Apart from that, [`listen`] does what `HttpServer::listen` does.

use std::{fmt, io, net::TcpListener, sync::Arc, time::Duration};

use actix_http::{HttpService, Request, Response};
use actix_server::Server;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    Error,
    body::MessageBody,
    dev::{AppConfig, Extensions},
    http::KeepAlive,
    rt::net::TcpStream,
    web,
};

use super::{auth::Access, failure::failed, peers::Peers, socket::Socket};

/// How a role serves its connections.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// How long actix waits for a client to close a connection that it ends.
    pub disconnect_timeout: Duration,
    /// How long an idle connection is kept open.
    pub keep_alive: Duration,
    /// How many bytes of a response actix buffers.
    pub write_buffer: usize,
}

/// Serves an app on a bound listener; to be polled until it ends. Each new connection gets a place among those of its
/// peers, and what its role needs to know of its user; then `on_connect` runs.
///
/// # Errors
///
/// The listener cannot be used.
pub fn listen<App, S, B>(
    listener: TcpListener,
    options: ListenOptions,
    (peers, access): (Arc<Peers>, web::Data<Access>),
    app: impl Fn() -> App + Clone + Send + 'static,
    on_connect: impl Fn(&TcpStream) + Clone + Send + 'static,
) -> io::Result<Server>
where
    App: IntoServiceFactory<S, Request> + 'static,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<Error> + 'static,
    S::InitError: fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    let builder = Server::build().disable_signals().max_concurrent_connections(peers.for_each_worker());
    let shutdown = builder.graceful_shutdown_signal();
    let serve = move || {
        let (shutdown, peers, access, on_connect) =
            (shutdown.clone(), Arc::clone(&peers), access.clone(), on_connect.clone());
        let app = app().into_factory().map_err(|error| error.into().error_response());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let shutdown = shutdown.clone();
                async move { shutdown.notified().await }
            })
            .keep_alive(KeepAlive::Timeout(options.keep_alive))
            .client_request_timeout(peers.patience())
            .client_disconnect_timeout(options.disconnect_timeout)
            .h1_allow_half_closed(false)
            .h1_write_buffer_size(options.write_buffer)
            .on_connect_ext(move |socket: &Socket, data: &mut Extensions| {
                peers.arrive(socket, data);
                access.keep_peer(socket.stream(), data);
                on_connect(socket.stream());
            })
            // The configuration only serves to make URLs, which neither role does.
            .h1(map_config(app, |()| AppConfig::default()));
        fn_service(|stream: TcpStream| async {
            let address = stream.peer_addr().ok();
            Ok((Socket::new(stream), address))
        })
        .and_then(http)
    };
    let server = builder.listen("http", listener, serve).map_err(failed("cannot serve on the listener"))?;
    Ok(server.run())
}
