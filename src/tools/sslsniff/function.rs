// SPDX-License-Identifier: BSD-2-Clause

//! The functions of TLS libraries that are probed, by their names.

/// The functions that are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Function {
    Read,
    Write,
    /// OpenSSL 1.1.1, as the other `_ex` functions and early data.
    ReadEx,
    WriteEx,
    DoHandshake,
    Free,
    Peek,
    PeekEx,
    /// OpenSSL 3.3
    WriteEx2,
    ReadEarlyData,
    WriteEarlyData,
    /// OpenSSL 3.0, with kernel TLS.
    Sendfile,
    Shutdown,
    GnutlsRecv,
    GnutlsSend,
    /// GnuTLS 3.6.3
    GnutlsSend2,
    GnutlsHandshake,
    GnutlsBye,
    GnutlsDeinit,
    /// What `SSL_set_tlsext_host_name()` is a macro for in OpenSSL.
    Ctrl,
    GetVersion,
    GetServername,
    GetAlpn,
    SessionReused,
    SetFd,
    SetRfd,
    SetWfd,
    SetBio,
    /// OpenSSL 1.1.0, as the next.
    Set0Rbio,
    Set0Wbio,
    /// What the hello's random number comes from.
    Random,
    /// The same from OpenSSL 3.0 on.
    RandomEx,
    /// How OpenSSL up to 1.1.1 and BoringSSL say why a call fails.
    Error,
    /// The same from OpenSSL 3.0 on.
    ErrorV,
    /// What keys come from, from OpenSSL 3.0 on.
    Derive,
    /// BoringSSL's own.
    SetHostName,
    /// What an object is used for from then on is another connection.
    Clear,
    SetConnectState,
    SetAcceptState,
    /// `GnuTLS` 3.1.9
    GnutlsUncork,
    /// OpenSSL 1.1.0
    UpRef,
}

impl Function {
    /// All of them; the order is that of `enum ssl_function`.
    pub const ALL: [Self; 41] = [
        Self::Read,
        Self::Write,
        Self::ReadEx,
        Self::WriteEx,
        Self::DoHandshake,
        Self::Free,
        Self::Peek,
        Self::PeekEx,
        Self::WriteEx2,
        Self::ReadEarlyData,
        Self::WriteEarlyData,
        Self::Sendfile,
        Self::Shutdown,
        Self::GnutlsRecv,
        Self::GnutlsSend,
        Self::GnutlsSend2,
        Self::GnutlsHandshake,
        Self::GnutlsBye,
        Self::GnutlsDeinit,
        Self::Ctrl,
        Self::GetVersion,
        Self::GetServername,
        Self::GetAlpn,
        Self::SessionReused,
        Self::SetFd,
        Self::SetRfd,
        Self::SetWfd,
        Self::SetBio,
        Self::Set0Rbio,
        Self::Set0Wbio,
        Self::Random,
        Self::RandomEx,
        Self::Error,
        Self::ErrorV,
        Self::Derive,
        Self::SetHostName,
        Self::Clear,
        Self::SetConnectState,
        Self::SetAcceptState,
        Self::GnutlsUncork,
        Self::UpRef,
    ];

    /// The symbol's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "SSL_read",
            Self::Write => "SSL_write",
            Self::ReadEx => "SSL_read_ex",
            Self::WriteEx => "SSL_write_ex",
            Self::DoHandshake => "SSL_do_handshake",
            Self::Free => "SSL_free",
            Self::Peek => "SSL_peek",
            Self::PeekEx => "SSL_peek_ex",
            Self::WriteEx2 => "SSL_write_ex2",
            Self::ReadEarlyData => "SSL_read_early_data",
            Self::WriteEarlyData => "SSL_write_early_data",
            Self::Sendfile => "SSL_sendfile",
            Self::Shutdown => "SSL_shutdown",
            Self::GnutlsRecv => "gnutls_record_recv",
            Self::GnutlsSend => "gnutls_record_send",
            Self::GnutlsSend2 => "gnutls_record_send2",
            Self::GnutlsHandshake => "gnutls_handshake",
            Self::GnutlsBye => "gnutls_bye",
            Self::GnutlsDeinit => "gnutls_deinit",
            Self::Ctrl => "SSL_ctrl",
            Self::GetVersion => "SSL_get_version",
            Self::GetServername => "SSL_get_servername",
            Self::GetAlpn => "SSL_get0_alpn_selected",
            Self::SessionReused => "SSL_session_reused",
            Self::SetFd => "SSL_set_fd",
            Self::SetRfd => "SSL_set_rfd",
            Self::SetWfd => "SSL_set_wfd",
            Self::SetBio => "SSL_set_bio",
            Self::Set0Rbio => "SSL_set0_rbio",
            Self::Set0Wbio => "SSL_set0_wbio",
            Self::Random => "RAND_bytes",
            Self::RandomEx => "RAND_bytes_ex",
            Self::Error => "ERR_put_error",
            Self::ErrorV => "ERR_vset_error",
            Self::Derive => "EVP_KDF_derive",
            Self::SetHostName => "SSL_set_tlsext_host_name",
            Self::Clear => "SSL_clear",
            Self::SetConnectState => "SSL_set_connect_state",
            Self::SetAcceptState => "SSL_set_accept_state",
            Self::GnutlsUncork => "gnutls_record_uncork",
            Self::UpRef => "SSL_up_ref",
        }
    }

    /// The number in `enum ssl_function`.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Whether a file that defines it is a TLS library: whoever wraps one for a test or a trace may
    /// define the others.
    pub(super) fn makes_a_library(self) -> bool {
        matches!(
            self,
            Self::Read | Self::Write | Self::GnutlsRecv | Self::GnutlsSend
        )
    }

    /// What is probed in place of it where a library has both.
    pub(super) fn successor(self) -> Option<Self> {
        match self {
            Self::Random => Some(Self::RandomEx),
            Self::Error => Some(Self::ErrorV),
            _ => None,
        }
    }

    /// The one with this symbol.
    pub(super) fn of(symbol: &[u8]) -> Option<Self> {
        const STARTS: [&[u8]; 5] = [b"SSL_", b"gnutls_", b"RAND_", b"ERR_", b"EVP_KDF_"];
        // Most symbols leave here.
        if !STARTS.iter().any(|start| symbol.starts_with(start)) {
            return None;
        }
        Self::ALL
            .into_iter()
            .find(|function| function.name().as_bytes() == symbol)
    }
}
