package tlsmgr

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

// copyOf offers the session that c has now, and leaves c alone.
func copyOf(c *oneSession) func() *oneSession {
	return func() *oneSession { return &oneSession{c.session} }
}

func (c *oneSession) itself() *oneSession { return c }

// A session in which a client has shown its certificate, or none, is offered
// elsewhere: at hosts of the same server certificate and at another listener.
func TestTicketDoesNotReplaceAClientCertificate(t *testing.T) {
	for _, version := range bothVersions {
		d := newDoors(t, nil)
		good := d.clients.goodClient(t)
		open, closed := &oneSession{}, &oneSession{}
		for _, c := range []struct {
			what, listener, name string
			certificate          *tls.Certificate
			cache                func() *oneSession
			in, resumed          bool
		}{
			{"a first session at the open host", "https", "open.a.test", nil, open.itself, true, false},
			{"resumed", "https", "open.a.test", nil, open.itself, true, true},
			{"an open session at the closed host", "https", "closed.a.test", nil, copyOf(open), false, false},
			{"with a certificate", "https", "closed.a.test", good, copyOf(open), true, false},
			{"a first session at the closed host", "https", "closed.a.test", good, closed.itself, true, false},
			{"resumed without showing it again", "https", "closed.a.test", nil, closed.itself, true, true},
			{"a closed session at another listener", "other", "closed.a.test", nil, copyOf(closed), false, false},
			{"a closed session at the open host", "https", "open.a.test", nil, copyOf(closed), true, false},
		} {
			state, err := d.dial(t, c.listener, c.name, version, c.certificate, c.cache())
			if (err == nil) != c.in || state.DidResume != c.resumed {
				t.Errorf("%s, %s: resumed %v, %v; want in %v, resumed %v", tls.VersionName(version), c.what, state.DidResume, err, c.in, c.resumed)
			}
		}
	}
}

func TestTicketOfOtherClientCAsIsWorthNothing(t *testing.T) {
	for _, version := range bothVersions {
		d := newDoors(t, nil)
		session := &oneSession{}
		if _, err := d.dial(t, "https", "closed.a.test", version, d.clients.goodClient(t), session); err != nil {
			t.Fatal(err)
		}
		next := newTestCA(t)
		for _, c := range []struct {
			what string
			cas  []*testCA
			in   bool
		}{
			{"another CA", []*testCA{next}, false},
			{"one more CA", []*testCA{d.clients, next}, false}, // other demands, so the certificate is asked for again
			{"the same CA again", []*testCA{d.clients}, true},
		} {
			c.cas[0].save(t, d.file, c.cas[1:]...)
			d.reloadFiles(t.Context(), d.state.Load(), map[string]complaint{})
			state, err := d.dial(t, "https", "closed.a.test", version, nil, copyOf(session)())
			if (err == nil) != c.in || state.DidResume != c.in {
				t.Errorf("%s, %s: resumed %v, %v; want %v", tls.VersionName(version), c.what, state.DidResume, err, c.in)
			}
		}
	}
}

func TestTicketEndsWithTheClientsCertificate(t *testing.T) {
	for _, version := range bothVersions {
		d := newDoors(t, nil)
		session := &oneSession{}
		end := time.Now().Add(2 * time.Second).Truncate(time.Second)
		if _, err := d.dial(t, "https", "closed.a.test", version, d.clients.client(t, end, x509.ExtKeyUsageClientAuth), session); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Until(end) + 1100*time.Millisecond) // crypto/tls goes by the machine's clock
		if state, err := d.dial(t, "https", "closed.a.test", version, nil, session); err == nil {
			t.Errorf("%s: resumed %v after the client's certificate had expired", tls.VersionName(version), state.DidResume)
		}
	}
}
