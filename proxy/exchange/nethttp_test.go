package exchange_test

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"edge/proxy/exchange"
	"edge/proxy/exchange/exchangetest"
)

func TestEngineHTTP1(t *testing.T) {
	exchangetest.Run(t, starter(false, false))
}

func TestEngineHTTP1OverTLS(t *testing.T) {
	exchangetest.Run(t, starter(true, false))
}

func TestEngineHTTP2(t *testing.T) {
	exchangetest.Run(t, starter(true, true))
}

// starter serves with net/http.
func starter(secure, h2 bool) exchangetest.Start {
	return func(tb testing.TB, h exchange.Handler) *exchangetest.Server {
		tb.Helper()
		srv := httptest.NewUnstartedServer(exchange.ToHTTP(h, nil))
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		srv.Config.DisableGeneralOptionsHandler = true
		srv.EnableHTTP2 = h2
		if secure {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		tb.Cleanup(func() {
			srv.CloseClientConnections()
			srv.Close()
		})
		s := &exchangetest.Server{URL: srv.URL, Client: srv.Client(), Sorted: true}
		addr := srv.Listener.Addr().String()
		switch {
		case h2:
		case secure:
			conf := srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			conf.NextProtos = []string{"http/1.1"}
			s.Dial = func() (net.Conn, error) { return tls.Dial("tcp", addr, conf) }
		default:
			s.Dial = func() (net.Conn, error) { return net.Dial("tcp", addr) }
		}
		return s
	}
}
