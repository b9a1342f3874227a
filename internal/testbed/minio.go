package testbed

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"golang.org/x/crypto/argon2"
)

var minioBuilt = built{dir: "minio", takes: "5 minutes"}

// MinIOSetup says what kind of MinIO a test wants.
type MinIOSetup struct {
	// IfCached skips the test if the program would have to be built first; with
	// STINT_REQUIRE_SERVERS=all it is built all the same.
	IfCached bool
	// Discovery is the address of an issuer's metadata: whoever has a token of its
	// for ClientID may assume [MinIOServer.Role], which has the policy RolePolicy.
	Discovery, ClientID, RolePolicy string
}

// MinIOServer is a real MinIO that was started for a test: S3 and STS at one address.
type MinIOServer struct {
	*Process
	Addr string // http://127.0.0.1:PORT
	Root AWSKeys
	// Role is the ARN of the role of [MinIOSetup].
	Role string

	client *http.Client
}

// AWSKeys are what requests are signed with.
type AWSKeys struct{ ID, Secret, Session string }

// MinIO starts a MinIO, building it first if it has to.
func MinIO(t testing.TB, s MinIOSetup) *MinIOServer {
	t.Helper()
	if s.IfCached {
		minioBuilt.skipUnbuilt(t, "minio")
	}
	program := minioBuilt.program(t, "minio", "github.com/minio/minio")
	dir, addr := t.TempDir(), fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	m := &MinIOServer{
		Addr: "http://" + addr, Root: AWSKeys{ID: "stintroot", Secret: "stint-root-secret"},
		client: &http.Client{Timeout: 20 * time.Second},
	}
	cmd := exec.Command(program, "server", "--quiet", "--address", addr, dir+"/data")
	cmd.Dir = dir
	cmd.Env = cleanEnv("HOME="+dir, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=on",
		"MINIO_ROOT_USER="+m.Root.ID, "MINIO_ROOT_PASSWORD="+m.Root.Secret)
	if s.Discovery != "" {
		cmd.Env = append(cmd.Env, "MINIO_IDENTITY_OPENID_CONFIG_URL="+s.Discovery,
			"MINIO_IDENTITY_OPENID_CLIENT_ID="+s.ClientID, "MINIO_IDENTITY_OPENID_ROLE_POLICY="+s.RolePolicy)
		id := sha1.Sum([]byte(s.ClientID)) // as it names roles
		m.Role = "arn:minio:iam:::role/" + base64.RawURLEncoding.EncodeToString(id[:])
	}
	m.Process = Start(t, cmd, func() error {
		// Signed: so it is known that accounts have been loaded, too.
		status, _, err := m.Do(t.Context(), m.Root, http.MethodGet, "/", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	return m
}

// Do asks the server for a path, which may have a query, by a request signed with keys.
func (m *MinIOServer) Do(ctx context.Context, k AWSKeys, method, path string, body []byte) (status int, answer []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, method, m.Addr+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	r.Header.Set("X-Amz-Content-Sha256", hash)
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	keys := aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret, SessionToken: k.Session}
	if err := signer.SignHTTP(ctx, keys, r, hash, "s3", "us-east-1", time.Now()); err != nil {
		return 0, nil, err
	}
	return m.answer(r)
}

// Ask sends a request as it is.
func (m *MinIOServer) Ask(r *http.Request) (status int, answer []byte, err error) { return m.answer(r) }

func (m *MinIOServer) answer(r *http.Request) (int, []byte, error) {
	res, err := m.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

func (m *MinIOServer) must(t testing.TB, method, path string, body []byte) {
	t.Helper()
	status, answer, err := m.Do(t.Context(), m.Root, method, path, body)
	if err != nil || status >= 300 {
		t.Fatalf("minio: %s %s: %d, %v\n%s", method, path, status, err, answer)
	}
}

// Bucket makes a bucket with objects in it, each holding its own name.
func (m *MinIOServer) Bucket(t testing.TB, name string, keys ...string) {
	t.Helper()
	m.must(t, http.MethodPut, "/"+name, nil)
	for _, key := range keys {
		m.must(t, http.MethodPut, "/"+name+"/"+key, []byte(key))
	}
}

// User makes a user who has a policy, and returns its keys.
func (m *MinIOServer) User(t testing.TB, name string, policy any) AWSKeys {
	t.Helper()
	text, err1 := json.Marshal(policy)
	k := AWSKeys{ID: name, Secret: rand.Text()}
	user, err2 := json.Marshal(map[string]string{"secretKey": k.Secret, "status": "enabled"})
	sealed, err3 := m.seal(user)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	const admin = "/minio/admin/v3/"
	q := url.QueryEscape(name)
	m.must(t, http.MethodPut, admin+"add-user?accessKey="+q, sealed)
	m.must(t, http.MethodPut, admin+"add-canned-policy?name="+q, text)
	m.must(t, http.MethodPut, admin+"set-user-or-group-policy?isGroup=false&policyName="+q+"&userOrGroup="+q, nil)
	return k
}

// seal encrypts what MinIO takes only under its administrator's key: salt, algorithm
// (0: AES-256-GCM), nonce, and one fragment, which says that it is the last.
func (m *MinIOServer) seal(plain []byte) ([]byte, error) {
	salt, nonce := make([]byte, 32), make([]byte, 12) // whose last 4 bytes count fragments
	_, err1 := rand.Read(salt)
	_, err2 := rand.Read(nonce[:8])
	block, err3 := aes.NewCipher(argon2.IDKey([]byte(m.Root.Secret), salt, 1, 64*1024, 4, 32))
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	out := append(append(salt, 0), nonce[:8]...)
	bound := gcm.Seal([]byte{0x80}, nonce, nil, nil)
	nonce[8] = 1
	return gcm.Seal(out, nonce, plain, bound), nil
}
