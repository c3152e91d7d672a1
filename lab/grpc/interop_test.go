package grpclab

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// official are the cases that need no credentials of a cloud.
var official = map[string]func(ctx context.Context, conn *grpc.ClientConn){
	"empty_unary":                 onTestService(interop.DoEmptyUnaryCall),
	"large_unary":                 onTestService(interop.DoLargeUnaryCall),
	"client_streaming":            onTestService(interop.DoClientStreaming),
	"server_streaming":            onTestService(interop.DoServerStreaming),
	"ping_pong":                   onTestService(interop.DoPingPong),
	"empty_stream":                onTestService(interop.DoEmptyStream),
	"timeout_on_sleeping_server":  onTestService(interop.DoTimeoutOnSleepingServer),
	"cancel_after_begin":          onTestService(interop.DoCancelAfterBegin),
	"cancel_after_first_response": onTestService(interop.DoCancelAfterFirstResponse),
	"status_code_and_message":     onTestService(interop.DoStatusCodeAndMessage),
	"special_status_message":      onTestService(interop.DoSpecialStatusMessage),
	"custom_metadata":             onTestService(interop.DoCustomMetadata),
	"unimplemented_method":        interop.DoUnimplementedMethod,
	"unimplemented_service": func(ctx context.Context, conn *grpc.ClientConn) {
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn))
	},
}

func onTestService(f func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)) func(context.Context, *grpc.ClientConn) {
	return func(ctx context.Context, conn *grpc.ClientConn) { f(ctx, testgrpc.NewTestServiceClient(conn)) }
}

// bothWays runs f without edge, as a control, and through it.
func bothWays(t *testing.T, f func(t *testing.T, b *backend, conn *grpc.ClientConn)) {
	t.Helper()
	t.Run("direct", func(t *testing.T) {
		b := newBackend(t)
		f(t, b, b.direct(t))
	})
	t.Run("edge", func(t *testing.T) {
		b := newBackend(t)
		f(t, b, b.edge(t))
	})
}

func TestOfficialCases(t *testing.T) {
	bothWays(t, func(t *testing.T, _ *backend, conn *grpc.ClientConn) {
		t.Helper()
		for name, run := range official {
			t.Run(name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				judge(t, func() { run(ctx, conn) })
			})
		}
	})
}

// The official cases tell a failure apart: a server that is not there fails
// every one of them.
func TestAnOfficialCaseCanFail(t *testing.T) {
	b := newBackend(t)
	conn := b.direct(t)
	b.stop(t, (*grpc.Server).Stop)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	defer func() {
		if _, failed := recover().(failure); !failed {
			t.Error("a call to no server at all passed")
		}
	}()
	official["empty_unary"](ctx, conn)
}
