package acme_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
	"edge/tlsmgr/acme"
)

// script is a CA that has one order, without a network, for clocks that are
// virtual. It does not look at signatures: what is right in them, Pebble says.
type script struct {
	t          *testing.T
	order      func() string // its status, and more fields
	authz      string        // status of its only authorization
	retryAfter string

	mu        sync.Mutex
	looks     int
	finalized int
}

const scripted = "https://script.test"

// RoundTrip implements http.RoundTripper.
func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	header := http.Header{"Content-Type": {"application/json"}, "Replay-Nonce": {"n"}}
	status, body := http.StatusOK, ""
	switch req.URL.Path {
	case "/dir":
		body = fmt.Sprintf(`{"newNonce":"%[1]s/nonce","newAccount":"%[1]s/new-account","newOrder":"%[1]s/new-order"}`, scripted)
	case "/nonce":
	case "/new-order":
		header.Set("Location", scripted+"/order")
		status, body = http.StatusCreated, s.orderBody()
	case "/order":
		s.looks++
		header.Set("Retry-After", s.retryAfter)
		body = s.orderBody()
	case "/finalize":
		s.finalized++
		body = s.orderBody()
	case "/authz":
		s.looks++
		header.Set("Retry-After", s.retryAfter)
		body = `{"identifier":{"type":"dns","value":"a.test"},"status":"` + s.authz + `","challenges":[{"type":"dns-01","url":"` + scripted + `/challenge","token":"t","status":"pending"}]}`
	case "/challenge":
		body = `{"type":"dns-01","status":"processing"}`
	default:
		s.t.Errorf("unexpected request of %s", req.URL)
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

func (s *script) orderBody() string {
	return fmt.Sprintf(`{"status":%s,"identifiers":[{"type":"dns","value":"a.test"}],"authorizations":["%[2]s/authz"],"finalize":"%[2]s/finalize"}`, s.order(), scripted)
}

// open begins an order.
func (s *script) open(t *testing.T) *acme.Order {
	t.Helper()
	key, err := acme.NewKey(config.P256)
	if err != nil {
		t.Fatal(err)
	}
	return order(t, at(t, scripted+"/dir", &http.Client{Transport: s}), &acme.Account{URL: scripted + "/account", Key: key}, "a.test")
}

func TestFinalizeGivesUpOnWhatStandsStill(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		order, retryAfter string
		kind              acme.Kind
		words             string
		after             time.Duration
		finalized         int
		looks             int // at most
	}{
		"never ready":          {`"pending"`, "", acme.BadRequest, "has not seen proof of every name", 30 * time.Second, 0, 20},
		"never issued":         {`"processing"`, "", acme.ServerError, "did not issue within 5m0s", 5 * time.Minute, 0, 80},
		"never issued, slowly": {`"processing"`, "3600", acme.ServerError, "did not issue within 5m0s", 5 * time.Minute, 0, 12},
		"always ready":         {`"ready"`, "", acme.ServerError, "makes no sense: unexpected state: ready", time.Second, 1, 3},
		"unheard of":           {`"asleep"`, "", acme.ServerError, "the CA says it is asleep", time.Second, 0, 2},
		"invalid without word": {`"invalid"`, "", acme.Other, "without a reason", time.Second, 0, 2},
		"invalid for CAA": {
			`"invalid","error":{"type":"urn:ietf:params:acme:error:caa","detail":"forbidden"}`, "",
			acme.CAA, "caa: forbidden", time.Second, 0, 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, order: func() string { return c.order }, retryAfter: c.retryAfter}
				o := s.open(t)
				began := time.Now()
				refused(t, o.Finalize(t.Context(), []byte("csr")), c.kind, c.words)
				if took := time.Since(began); took > c.after+time.Second || c.after > time.Second && took < c.after {
					t.Errorf("gave up after %v, want %v", took, c.after)
				}
				if s.finalized != c.finalized || s.looks > c.looks {
					t.Errorf("finalized %d times and looked %d, want %d and at most %d", s.finalized, s.looks, c.finalized, c.looks)
				}
			})
		})
	}
}

func TestFinalizeWaitsAsLongAsTheCASays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := &script{t: t, retryAfter: "7"}
		s.order = func() string {
			switch {
			case s.finalized == 0:
				return `"ready"`
			case time.Since(began) < 20*time.Second:
				return `"processing"`
			default:
				return `"valid"`
			}
		}
		o := s.open(t)
		if err := o.Finalize(t.Context(), []byte("csr")); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 21*time.Second || s.finalized != 1 || o.Status != "valid" {
			t.Errorf("%s after %v and %d times, want valid after 21s, once", o.Status, took, s.finalized)
		}
	})
}

func TestManyVerdictsShareOneTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, order: func() string { return `"pending"` }, authz: "pending"}
		o := s.open(t)
		proofs, err := o.Proofs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err = o.Validate(t.Context(), slices.Repeat(proofs, 30), config.DNS01)
		refused(t, err, acme.ServerError, "did not decide")
		if took := time.Since(began); took != 5*time.Minute {
			t.Errorf("30 names took %v, want 5m", took)
		}
	})
}

func TestValidateGivesUpOnACAThatDoesNotDecide(t *testing.T) {
	t.Parallel()
	for status, c := range map[string]struct {
		kind  acme.Kind
		words string
		after time.Duration
	}{
		"pending":     {acme.ServerError, "did not decide within 5m0s", 5 * time.Minute},
		"deactivated": {acme.Unproven, "a.test: the authorization is deactivated", 0},
		"valid":       {"", "", 0},
	} {
		t.Run(status, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, order: func() string { return `"pending"` }, authz: "pending"}
				o := s.open(t)
				proofs, err := o.Proofs(t.Context())
				if err != nil || len(proofs) != 1 {
					t.Fatalf("proofs %+v, %v", proofs, err)
				}
				s.authz = status
				began := time.Now()
				err = o.Validate(t.Context(), proofs, config.DNS01)
				if took := time.Since(began); took != c.after {
					t.Errorf("decided after %v, want %v", took, c.after)
				}
				if c.kind == "" && err != nil {
					t.Error(err)
				} else if c.kind != "" {
					refused(t, err, c.kind, c.words)
				}
			})
		})
	}
}
