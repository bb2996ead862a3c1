//! Signing, checking signatures, and the documents by which others can check them (OpenID Connect discovery).

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Claims;
use crate::error::{Error, Result};

/// Holds the key (ES256) of the cluster's service-account tokens.
pub struct Issuer {
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
    /// The curve point, x and y.
    point: (String, String),
    /// `iss` of the tokens, and the audience of those for the API server itself.
    url: String,
}

impl Issuer {
    /// `key` is PKCS#8, `public` SubjectPublicKeyInfo, both PEM and of curve P-256.
    ///
    /// # Errors
    /// When they are not.
    pub fn new(url: &str, key: &str, public: &str) -> Result<Issuer> {
        let bad = |reason: String| Error::Pki { path: "pki/sa.key".into(), reason };
        let signing = EncodingKey::from_ec_pem(key.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let verifying = DecodingKey::from_ec_pem(public.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let body: String = public.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        let der = STANDARD.decode(body).map_err(|e| bad(e.to_string()))?;
        // The last bit string is the uncompressed point: 4, x, y.
        let point = der.len().checked_sub(65).map(|at| &der[at..]).filter(|point| point[0] == 4);
        let point = point.ok_or_else(|| bad("not a key of curve P-256".into()))?;
        Ok(Issuer {
            signing,
            verifying,
            key_id: URL_SAFE_NO_PAD.encode(Sha256::digest(&der)),
            point: (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..])),
            url: url.to_string(),
        })
    }

    /// `iss`, which is also the API server's audience.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The signed token.
    pub fn sign(&self, claims: &Claims) -> std::result::Result<String, String> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(|e| e.to_string())
    }

    /// Whether the text looks like a token of ours: three parts and our `iss`.
    pub fn recognizes(&self, token: &str) -> bool {
        let mut parts = token.split('.');
        let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else { return false };
        let payload = URL_SAFE_NO_PAD.decode(payload).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        payload.is_some_and(|claims| claims["iss"] == *self.url)
    }

    /// The claims of a token whose signature holds at `now` (Unix seconds).
    pub fn verify(&self, token: &str, now: i64) -> std::result::Result<Claims, String> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.url]);
        // Audiences are for the caller; times are compared with the caller's clock below.
        validation.validate_aud = false;
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        let claims: Claims =
            jsonwebtoken::decode(token, &self.verifying, &validation).map_err(|e| format!("invalid bearer token: {e}"))?.claims;
        if now > claims.exp {
            return Err("service account token has expired".into());
        }
        if now + 60 < claims.nbf {
            return Err("service account token is not valid yet".into());
        }
        Ok(claims)
    }

    /// `/.well-known/openid-configuration`; `server` is the server's own URL.
    pub fn discovery(&self, server: &str) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": format!("{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`
    pub fn keys(&self) -> Value {
        let (x, y) = &self.point;
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}]})
    }
}
