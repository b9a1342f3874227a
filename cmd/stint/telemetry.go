package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/vault"
)

// telemetry exports spans, if it is configured. Without it its functions are nil,
// and nothing is paid.
type telemetry struct {
	span     func(ctx context.Context, name string) (context.Context, func(error))
	request  func(r *http.Request) (context.Context, string, func(status int))
	shutdown func()
}

func newTelemetry(ctx context.Context, cfg *config.Config, log *slog.Logger) (*telemetry, error) {
	t := cfg.Telemetry
	if t == nil {
		return &telemetry{shutdown: func() {}}, nil
	}
	headers := make(map[string]string, len(t.Headers))
	for name, ref := range t.Headers {
		v, err := vault.Resolver{}.Resolve(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("telemetry: header %s: %w", name, err)
		}
		headers[name] = v.Reveal()
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(t.Endpoint), otlptracehttp.WithHeaders(headers), otlptracehttp.WithTimeout(5*time.Second))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	ratio := 1.0
	if t.Ratio != nil {
		ratio = *t.Ratio
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "stint"), attribute.String("service.instance.id", cfg.Replica), attribute.String("service.version", version()))),
	)
	tracer := provider.Tracer("github.com/stint-dev/stint")
	w3c := propagation.TraceContext{}
	return &telemetry{
		span: func(ctx context.Context, name string) (context.Context, func(error)) {
			ctx, span := tracer.Start(ctx, name)
			return ctx, func(err error) {
				if err != nil {
					// The code alone: an error's text is for the audit record.
					span.SetStatus(codes.Error, string(broker.CodeOf(err)))
				}
				span.End()
			}
		},
		request: func(r *http.Request) (context.Context, string, func(int)) {
			ctx := w3c.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
			ctx, span := tracer.Start(ctx, spanName(r), trace.WithSpanKind(trace.SpanKindServer))
			return ctx, span.SpanContext().TraceID().String(), func(status int) {
				span.SetAttributes(attribute.Int("http.response.status_code", status))
				span.End()
			}
		},
		shutdown: func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := provider.Shutdown(ctx); err != nil {
				log.Warn("export the last spans", "error", err)
			}
		},
	}, nil
}

// spanName names a request by its endpoint. What strangers make up has no name.
func spanName(r *http.Request) string {
	for _, e := range []string{"/oauth2/token", "/oauth2/revoke", "/oauth2/introspect", "/oauth2/jwks"} {
		if strings.HasSuffix(r.URL.Path, e) && (r.Method == http.MethodPost || r.Method == http.MethodGet) {
			return r.Method + " " + e
		}
	}
	return "other"
}
