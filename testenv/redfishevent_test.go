package testenv

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"recast/inventory"
)

// redfishListen takes events; status answers them.
func redfishListen(t *testing.T, status func(n int32) int) (url string, got chan map[string]any) {
	t.Helper()
	got = make(chan map[string]any, 100)
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		var event map[string]any
		if r.Method != http.MethodPost || json.Unmarshal(raw, &event) != nil {
			t.Errorf("%s: %q", r.Method, raw)
		}
		event["secret"] = r.Header.Get("X-Secret")
		code := status(n.Add(1))
		if code == 204 {
			got <- event
		}
		w.WriteHeader(code)
	}))
	t.Cleanup(server.Close)
	return server.URL, got
}

func redfishNext(t *testing.T, got chan map[string]any) map[string]any {
	t.Helper()
	select {
	case event := <-got:
		return event
	case <-time.After(20 * time.Second):
		t.Fatal("no event")
		return nil
	}
}

func redfishEventWord(event map[string]any, name string) string {
	events, _ := event["Events"].([]any)
	if len(events) != 1 {
		return ""
	}
	return redfishWord(events[0].(map[string]any), name)
}

func TestRedfishEventsArePushed(t *testing.T) {
	schemas := redfishSchemaRead(t)
	machine := &SimMachine{}
	b := redfishBMC(t, machine, RedfishOptions{})
	url, got := redfishListen(t, func(int32) int { return 204 })
	status, header, answer := redfishDo(t, b, "POST", redfishSubscriptions,
		`{"Destination":"`+url+`","Protocol":"Redfish","Context":"rack 1","EventTypes":["StatusChange","Alert"],"HttpHeaders":[{"X-Secret":"s"}]}`, nil)
	if status != 201 || redfishWord(answer, "Context") != "rack 1" || strings.Contains(answer["Name"].(string), "s3") {
		t.Fatalf("%d %v", status, answer)
	}
	if headers, _ := answer["HttpHeaders"].([]any); len(headers) != 0 {
		t.Errorf("headers are told: %v", headers)
	}
	// A change behind the BMC's back is told too.
	if err := machine.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	event := redfishNext(t, got)
	if redfishEventWord(event, "MessageId") != "ResourceEvent.1.3.ResourcePoweredOn" || event["Context"] != "rack 1" || event["secret"] != "s" {
		t.Errorf("event %v", event)
	}
	delete(event, "secret")
	for _, wrong := range schemas.judge(event, schemas["Event.v1_13_0"]["Event"], "Event.v1_13_0", "event") {
		t.Error(wrong)
	}
	reset("ForceRestart", 204).run(t, b) // a ResourceUpdated, which nobody asked for
	reset("ForceOff", 204).run(t, b)
	if event := redfishNext(t, got); redfishEventWord(event, "MessageId") != "ResourceEvent.1.3.ResourcePoweredOff" {
		t.Errorf("event %v", event)
	}
	redfishStep{method: "POST", path: redfishEventService + "/Actions/EventService.SubmitTestEvent", body: `{"MessageId":"x"}`, status: 204}.run(t, b)
	if event := redfishNext(t, got); redfishEventWord(event, "EventType") != "Alert" {
		t.Errorf("event %v", event)
	}
	redfishStep{method: "DELETE", path: header.Get("Location"), status: 204}.run(t, b)
	redfishStep{method: "GET", path: header.Get("Location"), status: 404}.run(t, b)
}

func TestRedfishEventIsSentAgainToWhoDoesNotTakeIt(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{})
	url, got := redfishListen(t, func(n int32) int {
		if n == 1 {
			return 500
		}
		return 204
	})
	redfishStep{method: "POST", path: redfishSubscriptions, body: `{"Destination":"` + url + `","Protocol":"Redfish"}`, status: 201}.run(t, b)
	reset("On", 204).run(t, b)
	if event := redfishNext(t, got); redfishEventWord(event, "MessageId") != "ResourceEvent.1.3.ResourcePoweredOn" {
		t.Errorf("event %v", event)
	}
}

func TestRedfishSubscriptionIsRefused(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{})
	for name, body := range map[string]string{
		"no destination":   `{"Protocol":"Redfish"}`,
		"no protocol":      `{"Destination":"http://127.0.0.1:9/"}`,
		"another protocol": `{"Destination":"http://127.0.0.1:9/","Protocol":"SMTP"}`,
		"no address":       `{"Destination":"somewhere","Protocol":"Redfish"}`,
		"to be verified":   `{"Destination":"https://127.0.0.1:9/","Protocol":"Redfish","VerifyCertificate":true}`,
	} {
		t.Run(name, func(t *testing.T) {
			redfishStep{method: "POST", path: redfishSubscriptions, body: body, status: 400}.run(t, b)
		})
	}
	get(redfishSubscriptions, "Members@odata.count", "0").run(t, b)
}

func TestRedfishEventsAreStreamed(t *testing.T) {
	machine := &SimMachine{}
	b := redfishBMC(t, machine, RedfishOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "https://"+b.Addr()+redfishEventService+"/SSE", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("admin", "secret")
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Fatalf("%s of %q", response.Status, kind)
	}
	get(redfishSubscriptions, "Members@odata.count", "1").run(t, b)
	if err := machine.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var event map[string]any
		if err := json.Unmarshal([]byte(text), &event); err != nil || redfishEventWord(event, "MessageId") != "ResourceEvent.1.3.ResourcePoweredOn" {
			t.Errorf("%v: %q", err, text)
		}
		response.Body.Close()
		await(t, "the subscription is gone", 20*time.Second, func() bool {
			_, _, answer := redfishDo(t, b, "GET", redfishSubscriptions, "", nil)
			return answer["Members@odata.count"] == 0.0
		})
		return
	}
	t.Fatalf("no event: %v", lines.Err())
}

func TestRedfishLogIsKeptAndCleared(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{})
	const entries = "/redfish/v1/Systems/1/LogServices/SEL/Entries"
	b.AddLogEntry("Critical", "a fan stands still")
	get(entries+"/1", "Message", "a fan stands still").run(t, b)
	reset("On", 204).run(t, b)
	redfishStep{method: "GET", path: redfishTestSystem, header: http.Header{"Authorization": {"Basic YWRtaW46d3Jvbmc="}}, status: 401}.run(t, b)
	get(entries, "Members@odata.count", "3").run(t, b)
	redfishStep{method: "POST", path: "/redfish/v1/Systems/1/LogServices/SEL/Actions/LogService.ClearLog", status: 204}.run(t, b)
	get(entries, "Members@odata.count", "0").run(t, b)
	b.AddLogEntry("OK", "numbers go on")
	get(entries+"/4", "Message", "numbers go on").run(t, b)
}

func TestRedfishCertificateIsReplaced(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{})
	const replace = redfishCertificateService + "/Actions/CertificateService.ReplaceCertificate"
	send := func(text string, status int) {
		t.Helper()
		body, _ := json.Marshal(map[string]any{"CertificateString": text, "CertificateType": "PEM",
			"CertificateUri": map[string]string{"@odata.id": redfishCertificates + "/1"}})
		redfishStep{method: "POST", path: replace, body: string(body), status: status}.run(t, b)
	}
	first := b.Pin()
	// Our own authority signs the request that the BMC makes.
	_, _, answer := redfishDo(t, b, "POST", redfishCertificateService+"/Actions/CertificateService.GenerateCSR",
		`{"CommonName":"bmc1","AlternativeNames":["bmc1.example"],"CertificateCollection":{"@odata.id":"`+redfishCertificates+`"}}`, nil)
	block, _ := pem.Decode([]byte(redfishWord(answer, "CSRString")))
	if block == nil {
		t.Fatalf("no request in %v", answer)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || request.CheckSignature() != nil || request.Subject.CommonName != "bmc1" {
		t.Fatalf("request: %v", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	sign := func(public any) string {
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "bmc1"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}, authority, public, key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	send("nonsense", 400)
	send(sign(key.Public()), 400) // of another key
	if b.Pin() != first {
		t.Fatal("a refused certificate is shown")
	}
	signed := sign(request.PublicKey)
	send(signed, 204)
	der, _ := pem.Decode([]byte(signed))
	if b.Pin() != inventory.DigestOf(der.Bytes) {
		t.Errorf("pin %s", b.Pin())
	}
	get(redfishCertificates+"/1", "Issuer", `{"CommonName":"CA"}`).run(t, b) // redfishDo sees the new one
	if err := b.SwapCertificate(); err != nil || b.Pin() == inventory.DigestOf(der.Bytes) {
		t.Errorf("swap: %v", err)
	}
}
