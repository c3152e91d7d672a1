//go:build edgepoison

package exchange_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"edge/proxy/exchange"
)

func TestEveryCallAfterTheEndPanics(t *testing.T) {
	var kept *exchange.Exchange
	record(httptest.NewRequest(http.MethodGet, "/", http.NoBody), func(e *exchange.Exchange) {
		kept = e
		e.OnEnd(func(e *exchange.Exchange) { e.Done() }) // still alive
	})
	for name, call := range map[string]func(){
		"Read":            func() { kept.Read(nil) },
		"Trailer":         func() { kept.Trailer() },
		"Write":           func() { kept.Write(nil) },
		"Flush":           func() { kept.Flush() },
		"Interim":         func() { kept.Interim(103, nil) },
		"OnEnd":           func() { kept.OnEnd(nil) },
		"Detach":          func() { kept.Detach(nil) },
		"Tunnel":          func() { kept.Tunnel() },
		"Abort":           func() { kept.Abort() },
		"Interrupt":       func() { kept.Interrupt() },
		"Done":            func() { kept.Done() },
		"Context":         func() { kept.Context() },
		"Committed":       func() { kept.Committed() },
		"SetReadTimeout":  func() { kept.SetReadTimeout(0) },
		"SetWriteTimeout": func() { kept.SetWriteTimeout(0) },
		"SetReadLimit":    func() { kept.SetReadLimit(0) },
	} {
		func() {
			defer func() {
				if v, ok := recover().(string); !ok || !strings.Contains(v, "after its end") {
					t.Errorf("%s after the end: %v, want a panic that says so", name, v)
				}
			}()
			call()
		}()
	}
	if kept.Header != nil || !strings.Contains(kept.Path, "after its end") {
		t.Error("the fields are as they were")
	}
}
