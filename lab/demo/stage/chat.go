package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// words is what the model servers say.
const words = "Hello from behind edge : every token you see crossed TLS under a wildcard certificate that edge obtained itself a moment ago ."

// chunk is the part of an OpenAI stream chunk that has the token.
type chunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
}

// chat asks for a streamed completion as any OpenAI client does and prints the
// tokens as they come.
func (d *demo) chat(ctx context.Context) error {
	body := `{"model":"llama","stream":true,"messages":[{"role":"user","content":"Who is there?"}]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+chatHost+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	d.say.step("POST https://%s/v1/chat/completions", chatHost)
	resp, err := d.client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("chat: %s", resp.Status)
	}
	d.say.step("%s %s from %s, tokens as they come:", resp.Proto, resp.Status, resp.Header.Get("X-Model-Server"))
	d.say.raw("\n         ")
	tokens, ended := 0, false
	for sc := bufio.NewScanner(resp.Body); sc.Scan() && !ended; {
		data, ok := strings.CutPrefix(sc.Text(), "data: ")
		if ended = data == "[DONE]"; !ok || ended {
			continue
		}
		var c chunk
		if err := json.Unmarshal([]byte(data), &c); err != nil {
			return fmt.Errorf("chat: %w", err)
		}
		for _, choice := range c.Choices {
			d.say.raw(choice.Delta.Content)
			tokens++
		}
	}
	d.say.raw("\n\n")
	if !ended {
		return errors.New("chat: the stream ended without [DONE]")
	}
	d.say.step("%d chunks", tokens)
	d.certificate(resp.TLS.PeerCertificates[0])
	return nil
}

func (d *demo) certificate(leaf *x509.Certificate) {
	d.say.step("certificate names     %s", strings.Join(leaf.DNSNames, ", "))
	d.say.step("            issuer    %s", leaf.Issuer.CommonName)
	d.say.step("            serial    %x", leaf.SerialNumber)
	d.say.step("            valid     %s to %s", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
}

// client trusts the CA of the lab and finds every name at edge's address.
func (d *demo) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.lab.CA.RootsPEM)
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, d.addr)
		},
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}}
}

// invite prints what to try while the demo stays up.
func (d *demo) invite() {
	_, port, _ := net.SplitHostPort(d.addr)
	curl := fmt.Sprintf("curl --cacert roots.pem --resolve '*:%s:127.0.0.1'", port)
	d.say.print(fmt.Sprintf(`
Try it, from another terminal:

  cd %[1]s
  %[2]s -N https://%[3]s:%[4]s/v1/chat/completions \
    -H 'content-type: application/json' -d '{"model":"llama","stream":true,"messages":[{"role":"user","content":"hi"}]}'
  %[2]s https://any-other-name.models.%[5]s:%[4]s/v1/models
  %[2]s https://unknown.%[5]s:%[4]s/    # refused in the handshake
  openssl s_client -connect %[6]s -servername %[3]s </dev/null 2>/dev/null | openssl x509 -noout -text

  ./edge status
  ./edge certs ls
  set -a; . ./env; set +a               # the lab's secrets, for the commands that order or read the bucket
  ./edge certs plan && ./edge certs renew --all && ./edge certs show %[3]s
  ./edge dns check '*.models.%[5]s' --write
  ./edge storage ls && ./edge storage verify
  $EDITOR routes.yaml && ./edge validate && ./edge reload

^C ends everything.`, d.dir, curl, chatHost, port, zone, d.addr))
}
