//! The authenticated caller of a request. The guard in [`super::auth`] puts it into the request's extensions, and
//! handlers take it as a parameter.

use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, dev::Payload, error::ErrorInternalServerError};
use cc_executor_actors::client::ClientName;
use futures_util::future::{Ready, ready};

/// Who calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A client, or a gateway on behalf of it.
    Client(ClientName),
    /// Who calls the backend with its token and in nobody's name. An operator sees and ends every execution.
    Operator,
}

impl Caller {
    /// The client that owns what the caller creates. An operator's executions belong to the client of a single token.
    pub fn client(self) -> ClientName {
        match self {
            Caller::Client(name) => name,
            Caller::Operator => ClientName::of_single_token(),
        }
    }

    /// Whether the caller may see and touch what belongs to this client.
    pub fn may_touch(&self, owner: &ClientName) -> bool {
        match self {
            Caller::Client(name) => name == owner,
            Caller::Operator => true,
        }
    }
}

impl FromRequest for Caller {
    type Error = Error;
    type Future = Ready<Result<Caller, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = request.extensions().get::<Caller>().cloned();
        ready(caller.ok_or_else(|| ErrorInternalServerError("the route is not behind the guard")))
    }
}
