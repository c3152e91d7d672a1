package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	miekg "github.com/miekg/dns"

	"edge/internal/acmelab"
)

func TestReasonIsShortAndHasNoAddresses(t *testing.T) {
	t.Parallel()
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "udp", Addr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 53}, Err: err}
	}
	for want, err := range map[string]error{
		"connection refused":     dial(&os.SyscallError{Syscall: "connect", Err: syscall.ECONNREFUSED}),
		"network is unreachable": dial(&os.SyscallError{Syscall: "connect", Err: syscall.ENETUNREACH}),
		"i/o timeout":            dial(os.ErrDeadlineExceeded),
		"cancelled":              fmt.Errorf("ask: %w", context.Canceled),
		"host name not found":    dial(&net.DNSError{Err: "no such host", Name: "ns.example.test", IsNotFound: true}),
		"something else":         errors.New("something\n\telse"),
	} {
		if got := reason(err); got != want {
			t.Errorf("%v: reason %q, want %q", err, got, want)
		}
	}
	if got := reason(context.DeadlineExceeded); got != "i/o timeout" {
		t.Errorf("deadline: reason %q", got)
	}
	if got := rcode(23) + " " + rcode(3000); got != "BADCOOKIE RCODE3000" {
		t.Errorf("response codes %q", got)
	}
}

func TestUpdateRefusalsNameServerAndKey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want []string
	}{
		{miekg.ErrAuth, []string{"NOTAUTH", "TSIG key k.example", "not a primary"}},
		{miekg.ErrSig, []string{"not signed by TSIG key k.example", "key_algorithm"}},
		{miekg.ErrTime, []string{"not signed by TSIG key k.example", "both clocks"}},
		{errors.New(`dns response error code "REFUSED" (5)`), []string{"REFUSED", "update-policy"}},
		{errors.New(`dns response error code "NOTZONE" (10)`), []string{"NOTZONE", "primary"}},
		{errors.New(`dns response error code "NOTIMP" (4)`), []string{"NOTIMP", "dynamic updates"}},
		{os.ErrDeadlineExceeded, []string{"cannot be reached: i/o timeout"}},
		{errors.New(`dns response error code "SERVFAIL" (2)`), []string{"SERVFAIL"}},
	} {
		why := explainUpdate(c.err, "k.example.", "192.0.2.1:53")
		text := why.reason + " (" + why.hint + ")"
		for _, w := range append(c.want, "192.0.2.1:53") {
			if !strings.Contains(text, w) {
				t.Errorf("%v: %q lacks %q", c.err, text, w)
			}
		}
	}
}

func TestZoneOfANameIsLookedUpOnce(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	s := solver(t, d, Options{})
	for range 3 {
		present(t, s, Record{challenge, "v"})
	}
	soa := slices.DeleteFunc(d.Queries(), func(q acmelab.Query) bool { return q.Type != miekg.TypeSOA })
	if len(soa) != 1 {
		t.Errorf("SOA queries: %+v, want one", soa)
	}
}
