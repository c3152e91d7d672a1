package tlsmgr

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"sync/atomic"
	"time"
)

// Lifetimes of shared ticket keys. crypto/tls does the same with those of a
// process, and takes no ticket that is older than a week.
const (
	ticketDay  = 24 * time.Hour // how long a key makes tickets
	ticketDays = 7              // how many days longer it opens them
)

// ticketSecret is the label of the secrets that shared keys follow from.
const ticketSecret = "session tickets"

// Tickets make and open the session tickets of every listener with one set of
// keys, so that sessions survive a reload. Each ticket names the policy that it
// was given under: resumption skips the checks of a full handshake, so a session
// that one policy admitted must not open a host with another (RFC 8446 section
// 4.6.1, "Virtual Host Confusion", Delignat-Lavaud and Bhargavan 2015).
//
// There are two kinds of keys. Those of the process are random; crypto/tls
// rotates them daily and forgets them after a week. Those that replicas share
// follow from a secret and the day, so that behind one address each resumes the
// sessions of the others, and of itself after a restart. Who learns the secret
// learns them all, so they are only for what is safe then: sessions of TLS 1.3,
// whose resumption exchanges fresh keys (psk_dhe_ke, RFC 8446 section 2.2),
// so that recorded traffic stays closed, where a ticket of TLS 1.2 has the
// very key of the connection; and policies without client certificates, since
// who can make tickets can be anybody.
type tickets struct {
	keys tls.Config // only for its ticket keys, those of the process

	secrets atomic.Pointer[[][]byte] // nil shares nothing; the first makes tickets, all open them
	today   atomic.Pointer[ring]     // made anew each day
}

// A ring has the shared keys of one day.
type ring struct {
	day  int64
	keys *tls.Config // only for its ticket keys
}

// share has tickets made with keys that follow from the first secret, and
// opened with those of all.
func (t *tickets) share(secrets [][]byte) {
	if len(secrets) == 0 {
		return
	}
	t.secrets.Store(&secrets)
}

// shared are the keys of now, nil when nothing is shared. Two handshakes may
// both make those of a new day, which are the same.
func (t *tickets) shared(now time.Time) *tls.Config {
	secrets := t.secrets.Load()
	if secrets == nil {
		return nil
	}
	day := now.UnixNano() / int64(ticketDay)
	if r := t.today.Load(); r != nil && r.day == day {
		return r.keys
	}
	r := &ring{day: day, keys: new(tls.Config)}
	var keys [][32]byte
	for back := range int64(ticketDays + 1) {
		for _, secret := range *secrets {
			keys = append(keys, ticketKey(secret, day-back))
		}
	}
	for _, secret := range *secrets {
		keys = append(keys, ticketKey(secret, day+1)) // of replicas whose clock is ahead
	}
	r.keys.SetSessionTicketKeys(keys)
	t.today.Store(r)
	return r.keys
}

// ticketKey is the key that makes tickets on a day.
func ticketKey(secret []byte, day int64) (key [32]byte) {
	derived, err := hkdf.Expand(sha256.New, secret, fmt.Sprintf("edge session tickets\n%d", day), len(key))
	if err != nil {
		panic(err) // of more than 255 blocks, or of a secret that FIPS 140 finds short
	}
	copy(key[:], derived)
	return key
}

// bind makes c give out and accept tickets of policy only, and share them
// between replicas if it may. A ticket of another policy is ignored, and the
// client gets a full handshake.
func (t *tickets) bind(c *tls.Config, policy string, mayShare bool) {
	mark := []byte("edge policy " + policy)
	shared := func(state *tls.ConnectionState) *tls.Config {
		if !mayShare || state.Version < tls.VersionTLS13 {
			return nil
		}
		return t.shared(time.Now())
	}
	c.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		session.Extra = append(session.Extra, mark)
		if keys := shared(&state); keys != nil {
			return keys.EncryptTicket(state, session)
		}
		return t.keys.EncryptTicket(state, session)
	}
	c.UnwrapSession = func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		var session *tls.SessionState
		var err error
		if keys := shared(&state); keys != nil {
			session, err = keys.DecryptTicket(ticket, state)
		}
		if session == nil && err == nil {
			session, err = t.keys.DecryptTicket(ticket, state)
		}
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
