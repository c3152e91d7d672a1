package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"edge/tlsmgr"
)

// Bounds of one call.
const (
	maxTries     = 5
	tryTimeout   = 10 * time.Second // from the connection to the answer
	firstPause   = time.Second      // doubled at each try
	longestPause = time.Minute      // that a server may ask for
	maxRedirects = 3
	maxAnswer    = 4 << 10 // bytes that are read so that the connection can be used again
)

// message is the body of a call. Text is all of it in a sentence, which is what
// Slack and Teams show.
type message struct {
	Time        time.Time   `json:"time"`
	Certificate string      `json:"certificate"`
	Step        tlsmgr.Step `json:"step"`
	Detail      string      `json:"detail"`
	Host        string      `json:"host"`
	Version     string      `json:"version"`
	Text        string      `json:"text"`
}

func newMessage(e tlsmgr.Event, host, version string) []byte {
	m := message{Time: e.Time.UTC(), Certificate: e.Certificate, Step: e.Step, Detail: e.Detail, Host: host, Version: version}
	m.Text = escape(fmt.Sprintf("edge on %s: certificate %s: %s: %s", host, e.Certificate, e.Step, e.Detail))
	body, _ := json.Marshal(m) //nolint:errchkjson // strings and a time
	return body
}

// escape keeps what a CA says from being markup, such as a mention of everyone
// (https://api.slack.com/reference/surfaces/formatting#escaping).
func escape(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}

// sender posts to URLs that are secrets: its errors never show them.
type sender struct {
	client *http.Client
	pause  time.Duration // after the first try; doubled at each
}

func newSender() *sender {
	return &sender{pause: firstPause, client: &http.Client{
		Timeout: tryTimeout,
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: tryTimeout}).DialContext,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: tryTimeout,
			ForceAttemptHTTP2:   true,
			MaxIdleConns:        1,
			IdleConnTimeout:     idleTimeout,
		},
		CheckRedirect: follow,
	}}
}

func (s *sender) close() { s.client.CloseIdleConnections() }

// follow goes on only where the same POST is asked for at the same host: the
// message is not for others, and a 302 would turn it into a GET without it.
func follow(req *http.Request, via []*http.Request) error {
	from := via[0].URL
	if req.Method != http.MethodPost || req.URL.Scheme != from.Scheme || req.URL.Host != from.Host || len(via) > maxRedirects {
		return http.ErrUseLastResponse
	}
	return nil
}

// refused is an answer that trying again does not change.
type refused struct{ reason string }

func (r *refused) Error() string { return r.reason }

// send posts body to where the URL points at each try; "" is nowhere any more.
func (s *sender) send(ctx context.Context, to func() string, body []byte, tries int) error {
	pause := s.pause
	for try := 1; ; try++ {
		target := to()
		if target == "" {
			return nil
		}
		asked, err := s.try(ctx, target, body)
		if _, final := errors.AsType[*refused](err); err == nil || final {
			return err
		}
		if try >= tries {
			return fmt.Errorf("%w (after %d tries)", err, try)
		}
		wait := max(asked, pause+time.Duration(rand.Int64N(int64(pause)/4+1))) //nolint:gosec // jitter is no secret
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("%w (edge stops)", err)
		}
		pause *= 2
	}
}

// try posts once. It returns the pause that the server asks for.
func (s *sender) try(ctx context.Context, target string, body []byte) (asked time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return 0, &refused{"the URL cannot be used"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "edge")
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, errors.New(whyNot(err))
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	switch code := resp.StatusCode; {
	case code/100 == 2:
		return 0, nil
	case code/100 == 3:
		return 0, &refused{fmt.Sprintf("redirected by HTTP %d, which is followed only to the same host and with the same method (set the URL that it leads to)", code)}
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code/100 == 5:
		return retryAfter(resp), fmt.Errorf("answered HTTP %d", code)
	default:
		return 0, &refused{fmt.Sprintf("answered HTTP %d (is the URL still valid?)", code)}
	}
}

// retryAfter is the pause that a server asks for in seconds (RFC 9110 section
// 10.2.3), as far as one waits for it.
func retryAfter(resp *http.Response) time.Duration {
	n, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(min(n, int(longestPause/time.Second)))*time.Second, longestPause)
}

// whyNot says what went wrong on the way, in words that cannot hold the URL.
func whyNot(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	if d, ok := errors.AsType[*net.DNSError](err); ok {
		return "its host is not found: " + d.Err
	}
	if v, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its certificate is not trusted: " + v.Err.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op + ": " + op.Err.Error()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection ended before the answer"
	default:
		return "the request failed"
	}
}
