//! Serves HTTP/1.1 on a bound listener, over connections of our own ([`Socket`]), which `actix_web::HttpServer` does not
//! accept. Apart from that, [`listen`] does what `HttpServer::listen` does.

use std::{fmt, io, net::TcpListener, time::Duration};

use actix_http::{HttpService, Request, Response};
use actix_server::Server;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    Error,
    body::MessageBody,
    dev::{AppConfig, Extensions},
    http::KeepAlive,
    rt::net::TcpStream,
};

use super::socket::Socket;
use crate::server::failure::failed;

/// How a role serves its connections.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// How many connections each worker thread may have. At this number no more are accepted.
    pub connections: usize,
    /// How long the head of a request may take to arrive.
    pub request_timeout: Duration,
    /// How long actix waits for a client to close a connection that it ends.
    pub disconnect_timeout: Duration,
    /// How long an idle connection is kept open.
    pub keep_alive: Duration,
    /// How many bytes of a response actix buffers.
    pub write_buffer: usize,
}

/// Serves an app on a bound listener; to be polled until it ends. `on_connect` runs for each new connection.
///
/// # Errors
///
/// The listener cannot be used.
pub fn listen<App, S, B>(
    listener: TcpListener,
    options: ListenOptions,
    app: impl Fn() -> App + Clone + Send + 'static,
    on_connect: impl Fn(&Socket, &mut Extensions) + Clone + Send + 'static,
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
    let builder = Server::build().disable_signals().max_concurrent_connections(options.connections);
    let shutdown = builder.graceful_shutdown_signal();
    let serve = move || {
        let (shutdown, on_connect) = (shutdown.clone(), on_connect.clone());
        let app = app().into_factory().map_err(|error| error.into().error_response());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let shutdown = shutdown.clone();
                async move { shutdown.notified().await }
            })
            .keep_alive(KeepAlive::Timeout(options.keep_alive))
            .client_request_timeout(options.request_timeout)
            .client_disconnect_timeout(options.disconnect_timeout)
            .h1_allow_half_closed(false)
            .h1_write_buffer_size(options.write_buffer)
            .on_connect_ext(move |socket: &Socket, data: &mut Extensions| on_connect(socket, data))
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
