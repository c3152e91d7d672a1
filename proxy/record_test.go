package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"edge/config"
	"edge/proxy/exchange"
	"edge/proxy/upstream"
)

func TestRecordIsOneLineWithoutWhatIsEmpty(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	log.LogAttrs(t.Context(), slog.LevelInfo, "request", (&Record{
		Method: "POST", Host: "a.example.com", Path: "/v1", Status: 502, Reason: UpstreamLost, Duration: 2 * time.Second,
		FirstByte: time.Second, Route: "chat", Pool: "gpu", Endpoint: "http://10.0.0.1:8000", Attempts: 1, Received: 10, Sent: 20,
		Protocol: "HTTP/2.0", Peer: netip.MustParseAddrPort("192.0.2.1:55"), Listener: "https", RequestID: "id", Err: io.ErrUnexpectedEOF,
	}).LogAttrs()...)
	want := `msg=request method=POST host=a.example.com path=/v1 status=502 duration=2s first_byte=1s reason=upstream_lost route=chat pool=gpu ` +
		`endpoint=http://10.0.0.1:8000 attempts=1 received=10 sent=20 protocol=HTTP/2.0 peer=192.0.2.1:55 listener=https request_id=id error="unexpected EOF"`
	if got := out.String(); !strings.HasSuffix(strings.TrimSpace(got), want) {
		t.Errorf("got  %s\nwant … %s", got, want)
	}
	out.Reset()
	log.LogAttrs(t.Context(), slog.LevelInfo, "request", (&Record{Status: 404}).LogAttrs()...)
	for _, absent := range []string{"reason", "route", "pool", "endpoint", "error", "first_byte", "server_name"} {
		if strings.Contains(out.String(), absent+"=") {
			t.Errorf("got %s, which names an empty %s", out.String(), absent)
		}
	}
}

// reasons is every reason there is.
func reasons() []Reason {
	return []Reason{
		BadRequest, MethodNotAllowed, NoRoute, Misdirected, BodyTooLarge, HeadersTooLarge, RequestTimeout, NoEndpoint,
		UpstreamUnreachable, UpstreamTimeout, UpstreamLost, StreamIdle, TotalTimeout, ClientLeft, ClientStalled, ShuttingDown, Internal,
	}
}

func TestEveryReasonIsExplainedOnce(t *testing.T) {
	seen := map[Reason]bool{}
	for _, r := range reasons() {
		status, message := r.explain()
		if seen[r] || status < 400 || status > 599 || message == "" {
			t.Errorf("%s: got %d %q, twice %v", r, status, message, seen[r])
		}
		seen[r] = true
	}
	if status, _ := Reason("unheard_of").explain(); status != 500 {
		t.Errorf("unknown: got %d, want 500", status)
	}
}

func TestBlameFallsOnTheCause(t *testing.T) {
	body := func(err error) error { return fmt.Errorf("send: %w", &upstream.BodyError{Err: err}) }
	for _, c := range []struct {
		cause, err error
		want       Reason
	}{
		{nil, upstream.ErrNoEndpoint, NoEndpoint},
		{nil, upstream.ErrFirstByteTimeout, UpstreamTimeout},
		{nil, upstream.ErrBadRequest, BadRequest},
		{nil, &upstream.DialError{Err: syscall.ECONNREFUSED}, UpstreamUnreachable},
		{nil, &upstream.LostError{Err: io.EOF}, UpstreamLost},
		{nil, io.ErrUnexpectedEOF, UpstreamLost},
		{nil, body(exchange.ErrTooLarge), BodyTooLarge},
		{nil, body(os.ErrDeadlineExceeded), RequestTimeout},
		{nil, body(exchange.ErrClientGone), ClientLeft},
		{nil, body(io.ErrUnexpectedEOF), ClientLeft},
		{nil, body(syscall.ECONNRESET), ClientLeft},
		{nil, body(http2.StreamError{Code: http2.ErrCodeCancel}), ClientLeft},
		{nil, body(http2.StreamError{Code: http2.ErrCodeProtocol}), BadRequest},
		{nil, body(errors.New("malformed chunk")), BadRequest},
		{errTotal, net.ErrClosed, TotalTimeout},
		{exchange.ErrSilent, &upstream.LostError{Err: io.EOF}, StreamIdle},
		{exchange.ErrAborted, net.ErrClosed, ClientStalled},
		{exchange.ErrClientGone, net.ErrClosed, ClientLeft},
	} {
		if got := blame(c.cause, c.err); got != c.want {
			t.Errorf("blame(%v, %v) = %s, want %s", c.cause, c.err, got, c.want)
		}
	}
}

func TestEndsThatNoLayerSawAreExplained(t *testing.T) {
	for want, err := range map[Reason]error{
		ClientLeft:    syscall.EPIPE,
		ClientStalled: fmt.Errorf("write to client: %w", os.ErrDeadlineExceeded),
		UpstreamLost:  fmt.Errorf("%w: 1 bytes of 2", exchange.ErrLength),
		Internal:      &exchange.PanicError{Value: 1},
	} {
		if got := unexplained(err); got != want {
			t.Errorf("unexplained(%v) = %s, want %s", err, got, want)
		}
	}
}

func TestTwoOpinionsOnTheHostAreRefused(t *testing.T) {
	for _, c := range []struct {
		fields exchange.Fields
		want   bool
	}{
		{nil, true},
		{exchange.Fields{{Name: "host", Value: "a.example.com"}}, true},
		{exchange.Fields{{Name: "Host", Value: "b.example.com"}}, false},
		{exchange.Fields{{Name: "host", Value: "a.example.com"}, {Name: "Host", Value: "a.example.com"}}, false},
	} {
		if got := validHost(&exchange.Exchange{Host: "a.example.com", Header: c.fields}); got != c.want {
			t.Errorf("%v: got %v, want %v", c.fields, got, c.want)
		}
	}
}

func TestFirstSilenceIsTheLongerBound(t *testing.T) {
	for _, c := range []struct{ first, idle, want time.Duration }{
		{0, 0, 0}, {time.Minute, 0, 0}, {0, time.Minute, forever}, {time.Hour, time.Minute, time.Hour}, {time.Second, time.Minute, time.Minute},
	} {
		if got := firstSilence(config.Timeouts{FirstByte: c.first, StreamIdle: c.idle}); got != c.want {
			t.Errorf("first byte %v, idle %v: got %v, want %v", c.first, c.idle, got, c.want)
		}
	}
}

func TestListenErrorsHaveAHint(t *testing.T) {
	for err, want := range map[error]string{
		syscall.EADDRINUSE: "ss -ltnp", syscall.EACCES: "CAP_NET_BIND_SERVICE", syscall.EADDRNOTAVAIL: "no interface", io.EOF: "",
	} {
		if got := bindHint(fmt.Errorf("listen: %w", err)); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%v: got %q, want %q in it", err, got, want)
		}
	}
}

func TestHTTPSURLLeavesOutTheDefaultPort(t *testing.T) {
	for want, c := range map[string]struct {
		host string
		port int
	}{
		"https://a.example.com": {"a.example.com", 443}, "https://a.example.com:8443": {"a.example.com", 8443}, "https://[::1]": {"::1", 443},
	} {
		if got := httpsURL(c.host, c.port); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestSettingsGrowWithTheLargestHead(t *testing.T) {
	l := &config.Listener{Name: "https", Protocols: []config.Protocol{config.H2}}
	for limit, want := range map[int64]int{0: minHead, 32 << 10: minHead, minHead: minHead, minHead + 1: 2 * minHead, 1 << 20: 1 << 20} {
		got := settingsOf(l, &config.Config{Routes: []*config.Route{{Limits: config.Limits{Headers: limit}}}})
		if got != (settings{name: "https", http2: true, head: want}) {
			t.Errorf("limit %d: got %+v, want a head of %d", limit, got, want)
		}
	}
}
