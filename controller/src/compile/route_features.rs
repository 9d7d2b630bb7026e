//! What sidecars carry out of routes.

/// A part of Gateway API's routes that a sidecar has to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    /// Selects a rule for each request and a backend by weight. Without it, routes have no effect at all.
    Routing,
    /// The filter of this name.
    RequestHeaderModifier,
    /// The filter of this name.
    ResponseHeaderModifier,
    /// The filter of this name.
    RequestRedirect,
    /// The filter of this name.
    UrlRewrite,
    /// The filter of this name.
    RequestMirror,
    /// Filters of one backend.
    BackendFilters,
    /// `timeouts.request`.
    RequestTimeout,
    /// `timeouts.backendRequest`.
    BackendTimeout,
    /// `retry`.
    Retry,
}

/// A set of features. A rule that needs another one answers with an error, and its route's status says which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features(&'static [Feature]);

impl Features {
    /// What this version's sidecars carry out. A feature is added here together with its implementation in the sidecar.
    pub(crate) const EXECUTED: Self = Self(&[
        Feature::Routing,
        Feature::RequestHeaderModifier,
        Feature::ResponseHeaderModifier,
        Feature::RequestRedirect,
        Feature::UrlRewrite,
        Feature::RequestMirror,
        Feature::BackendFilters,
        Feature::RequestTimeout,
        Feature::BackendTimeout,
        Feature::Retry,
    ]);

    /// A set of these.
    #[cfg(test)]
    pub(crate) const fn only(features: &'static [Feature]) -> Self {
        Self(features)
    }

    /// Whether a feature is among them.
    pub(crate) fn has(self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }
}

impl Feature {
    /// What the feature is called in a route.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Routing => "routes",
            Self::RequestHeaderModifier => "filters of type RequestHeaderModifier",
            Self::ResponseHeaderModifier => "filters of type ResponseHeaderModifier",
            Self::RequestRedirect => "filters of type RequestRedirect",
            Self::UrlRewrite => "filters of type URLRewrite",
            Self::RequestMirror => "filters of type RequestMirror",
            Self::BackendFilters => "filters of a backendRef",
            Self::RequestTimeout => "timeouts.request",
            Self::BackendTimeout => "timeouts.backendRequest",
            Self::Retry => "retry",
        }
    }
}
