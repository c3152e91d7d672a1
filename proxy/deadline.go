package proxy

import (
	"math"
	"strconv"
	"time"

	"edge/proxy/dialect"
	"edge/proxy/exchange"
)

// maxTimeoutDigits bounds the number in a grpc-timeout.
const maxTimeoutDigits = 8

// outOfTime reports whether e is a gRPC call whose deadline has passed. A server
// keeps the deadline too, and ends the call by a reset that says nothing of it:
// a client may hear of that before its own clock tells it the time, and is to
// see what it would have seen without us.
func outOfTime(e *exchange.Exchange) bool {
	if !dialect.IsGRPC(e.Header.Get("content-type")) {
		return false
	}
	limit, ok := callTimeout(e.Header.Get("grpc-timeout"))
	return ok && time.Since(e.Start) >= limit
}

// callTimeout understands a grpc-timeout, a number and a unit
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). One that is
// longer than a Duration holds is none.
func callTimeout(value string) (time.Duration, bool) {
	last := len(value) - 1
	if last < 1 || last > maxTimeoutDigits {
		return 0, false
	}
	var unit time.Duration
	switch value[last] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	n, err := strconv.ParseUint(value[:last], 10, 32)
	if err != nil || time.Duration(n) > math.MaxInt64/unit {
		return 0, false
	}
	return time.Duration(n) * unit, true
}
