package sts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

func (k Keys) credentials() aws.Credentials {
	return aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret.Reveal(), SessionToken: k.Session.Reveal()}
}

// sign returns the header of a request whose body is signed for a service.
func (s *Service) sign(ctx context.Context, service string, k Keys, header http.Header, body []byte) (http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("address of the %s service: %w", service, err)
	}
	r.Header = header.Clone()
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	r.Header.Set("X-Amz-Content-Sha256", hash)
	if err := v4.NewSigner().SignHTTP(ctx, k.credentials(), r, hash, service, s.Region, s.Now()); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return r.Header, nil
}

// Presign returns a URL by which whoever has it may send one request to an object of a
// bucket, until some time has passed from now.
func (s *Service) Presign(ctx context.Context, k Keys, method, bucket, key string, now time.Time, life time.Duration) (string, error) {
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		return "", fmt.Errorf("address of the store: %w", err)
	}
	// The path in full, as it is signed: S3 escapes each part once, and a slash never.
	u = u.JoinPath() // with a slash at the end of what has no path
	u.Path += bucket + "/" + key
	u.RawPath = escape(u.Path)
	u.RawQuery = url.Values{"X-Amz-Expires": {strconv.FormatInt(int64(life/time.Second), 10)}}.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), http.NoBody)
	if err != nil {
		return "", fmt.Errorf("address of the object: %w", err)
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	signed, _, err := signer.PresignHTTP(ctx, k.credentials(), r, "UNSIGNED-PAYLOAD", "s3", s.Region, now)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return signed, nil
}

// escape writes a path as Signature Version 4 has it: all but unreserved characters
// (RFC 3986 section 2.3) and slashes.
func escape(path string) string {
	var b bytes.Buffer
	for i := range len(path) {
		switch c := path[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~', c == '/':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
