package tlsmgr

import (
	"bytes"
	"crypto/tls"
)

// Tickets make and open the session tickets of every listener with one set of
// keys, which crypto/tls rotates daily and forgets after a week, so that
// sessions survive a reload. Each ticket names the policy that it was given
// under: resumption skips the checks of a full handshake, so a session that one
// policy admitted must not open a host with another (RFC 8446 section 4.6.1,
// "Virtual Host Confusion", Delignat-Lavaud and Bhargavan 2015).
type tickets struct {
	keys tls.Config // only for its ticket keys
}

// bind makes c give out and accept tickets of policy only. A ticket of another
// policy is ignored, and the client gets a full handshake.
func (t *tickets) bind(c *tls.Config, policy string) {
	mark := []byte("edge policy " + policy)
	c.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		session.Extra = append(session.Extra, mark)
		return t.keys.EncryptTicket(state, session)
	}
	c.UnwrapSession = func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		session, err := t.keys.DecryptTicket(ticket, state)
		if err != nil || session == nil {
			return nil, err
		}
		for _, extra := range session.Extra {
			if bytes.Equal(extra, mark) {
				return session, nil
			}
		}
		return nil, nil //nolint:nilnil // crypto/tls: no session, do a full handshake
	}
}
