package proxy

import (
	"testing"
	"time"

	"edge/proxy/exchange"
)

func TestTimeoutsOfGRPCCalls(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "4m": 4 * time.Millisecond,
		"5u": 5 * time.Microsecond, "99999999n": 99_999_999, "0S": 0, "007m": 7 * time.Millisecond,
	} {
		if got, ok := callTimeout(value); !ok || got != want {
			t.Errorf("%q: got %v, %v, want %v", value, got, ok, want)
		}
	}
	for _, value := range []string{"", "1", "S", "1s", "-1S", "+1S", " 1S", "1.5S", "123456789S", "99999999H"} {
		if got, ok := callTimeout(value); ok {
			t.Errorf("%q: got %v, want none", value, got)
		}
	}
}

func TestOnlyAGRPCCallExpires(t *testing.T) {
	begun := time.Now().Add(-time.Second)
	for name, test := range map[string]struct {
		contentType, timeout string
		want                 bool
	}{
		"past":       {"application/grpc+proto", "900m", true},
		"to come":    {"application/grpc", "1M", false},
		"none":       {"application/grpc", "", false},
		"not gRPC":   {"application/json", "900m", false},
		"malformed":  {"application/grpc", "900", false},
		"not before": {"application/grpc", "99999999H", false},
	} {
		e := &exchange.Exchange{Start: begun}
		e.Header = exchange.Fields{{Name: "content-type", Value: test.contentType}, {Name: "grpc-timeout", Value: test.timeout}}
		if got := outOfTime(e); got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
