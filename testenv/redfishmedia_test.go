package testenv

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"recast/inventory"
)

// redfishImageServer serves one image, with ranges.
func redfishImageServer(t *testing.T, content []byte) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/boot.iso":
			http.ServeContent(w, r, "boot.iso", time.Time{}, bytes.NewReader(content))
		case "/whole.iso": // without ranges
			_, _ = w.Write(content)
		case "/secret.iso":
			if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			http.ServeContent(w, r, "secret.iso", time.Time{}, bytes.NewReader(content))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + "/boot.iso"
}

const redfishTestDrive = "/redfish/v1/Managers/1/VirtualMedia/CD1"

func redfishInsertStep(image, more string, status int) redfishStep {
	return redfishStep{method: "POST", path: redfishTestDrive + "/Actions/VirtualMedia.InsertMedia", body: `{"Image":"` + image + `"` + more + `}`, status: status}
}

func redfishEjectStep(status int) redfishStep {
	return redfishStep{method: "POST", path: redfishTestDrive + "/Actions/VirtualMedia.EjectMedia", body: "{}", status: status}
}

func TestRedfishMediumIsReadByTheMachine(t *testing.T) {
	content := make([]byte, 70_000)
	for i := range content {
		content[i] = byte(i * 7)
	}
	image := redfishImageServer(t, content)
	machine := &SimMachine{}
	b := redfishBMC(t, machine, RedfishOptions{})
	get(redfishTestDrive, "Inserted", "false").run(t, b)
	redfishInsertStep(image, "", 204).run(t, b)
	get(redfishTestDrive, "Image", image).run(t, b)
	get(redfishTestDrive, "ImageName", "boot.iso").run(t, b)
	medium := machine.Medium()
	if medium == nil || medium.Size() != int64(len(content)) || medium.Name() != "boot.iso" {
		t.Fatalf("medium %v", medium)
	}
	all, err := io.ReadAll(io.NewSectionReader(medium, 0, medium.Size()))
	if err != nil || !bytes.Equal(all, content) {
		t.Fatalf("read %d bytes, %v", len(all), err)
	}
	part := make([]byte, 100)
	if n, err := medium.ReadAt(part, medium.Size()-40); n != 40 || err != io.EOF || !bytes.Equal(part[:n], content[len(content)-40:]) {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	redfishInsertStep(image, "", 400).run(t, b) // the drive is full
	redfishEjectStep(204).run(t, b)
	get(redfishTestDrive, "Inserted", "false").run(t, b)
	if machine.Medium() != nil {
		t.Error("the machine still has it")
	}
	redfishEjectStep(204).run(t, b)
	if b.Done("insert") != 1 || b.Done("eject") != 1 {
		t.Errorf("log %v", b.Requests())
	}
	// By PATCH, as some want it.
	patch(redfishTestDrive, `{"Image":"`+image+`","Inserted":true,"WriteProtected":true}`, 204, "").run(t, b)
	if machine.Medium() == nil {
		t.Error("a PATCH did not insert")
	}
	patch(redfishTestDrive, `{"Image":null}`, 204, "").run(t, b)
	if machine.Medium() != nil {
		t.Error("a PATCH did not eject")
	}
}

func TestRedfishMediumIsRefused(t *testing.T) {
	image := redfishImageServer(t, make([]byte, 4096))
	base := image[:len(image)-len("boot.iso")]
	for name, c := range map[string]struct {
		faults      RedfishMediaFaults
		image, more string
		want        int
	}{
		"no such image":            {image: base + "none.iso", want: 400},
		"a server without ranges":  {image: base + "whole.iso", want: 400},
		"an image of others":       {image: base + "secret.iso", want: 400},
		"its account":              {image: base + "secret.iso", more: `,"UserName":"u","Password":"p"`, want: 204},
		"no address":               {image: "boot.iso", want: 400},
		"a protocol not spoken":    {image: "nfs://10.0.0.1/boot.iso", want: 400},
		"another protocol":         {image: image, more: `,"TransferProtocolType":"HTTPS"`, want: 400},
		"its protocol":             {image: image, more: `,"TransferProtocolType":"HTTP"`, want: 204},
		"an unknown parameter":     {image: image, more: `,"Nonsense":1`, want: 400},
		"a parameter is needed":    {faults: RedfishMediaFaults{Need: []string{"TransferProtocolType", "UserName"}}, image: image, more: `,"TransferProtocolType":"HTTP"`, want: 400},
		"all that is needed":       {faults: RedfishMediaFaults{Need: []string{"TransferMethod"}}, image: image, more: `,"TransferMethod":"Stream"`, want: 204},
		"a parameter is not taken": {faults: RedfishMediaFaults{Refuse: []string{"Inserted"}}, image: image, more: `,"Inserted":true`, want: 400},
		"no actions":               {faults: RedfishMediaFaults{OnlyPatch: true}, image: image, want: 404},
	} {
		t.Run(name, func(t *testing.T) {
			machine := &SimMachine{}
			b := redfishBMC(t, machine, RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{Media: c.faults}}})
			redfishInsertStep(c.image, c.more, c.want).run(t, b)
			if (machine.Medium() != nil) != (c.want == 204) {
				t.Errorf("medium %v", machine.Medium())
			}
		})
	}
}

func TestRedfishDriveComesToItselfAfterAnEjection(t *testing.T) {
	image := redfishImageServer(t, make([]byte, 4096))
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{Faults: BMCFaults{Redfish: RedfishFaults{Media: RedfishMediaFaults{EjectLag: time.Hour}}}})
	redfishInsertStep(image, "", 204).run(t, b)
	redfishEjectStep(204).run(t, b)
	get(redfishTestDrive, "Inserted", "true").run(t, b)
	b.SetFaults(func(f *BMCFaults) { f.Redfish.Media = RedfishMediaFaults{EjectBroken: time.Hour} })
	redfishStep{method: "GET", path: redfishTestDrive, status: 500}.run(t, b)
	b.SetFaults(func(f *BMCFaults) { f.Redfish.Media = RedfishMediaFaults{} })
	get(redfishTestDrive, "Inserted", "false").run(t, b)
}

func TestRedfishDrivesStandWhereTheyAreDeclared(t *testing.T) {
	b := redfishBMC(t, &SimMachine{}, RedfishOptions{MediaUnderSystem: true, Drives: []string{"CD1", "CD2"}})
	redfishStep{method: "GET", path: redfishTestDrive, status: 404}.run(t, b)
	get("/redfish/v1/Systems/1/VirtualMedia", "Members@odata.count", "2").run(t, b)
	get("/redfish/v1/Systems/1/VirtualMedia/CD2", "Inserted", "false").run(t, b)
}

func TestMediumThatChangesIsNotMixed(t *testing.T) {
	tag := `"1"`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(make([]byte, 4096)))
	}))
	defer server.Close()
	m := &httpMedium{url: server.URL + "/x", client: server.Client()}
	if err := m.open(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadAt(make([]byte, 8), 0); err != nil {
		t.Fatal(err)
	}
	tag = `"2"`
	if _, err := m.ReadAt(make([]byte, 8), 8); err == nil {
		t.Error("bytes of another image were read")
	}
}

func TestSimulatedMachineStartsWhatTheBMCNames(t *testing.T) {
	image := redfishImageServer(t, cdThatSays("x"))
	plain := redfishImageServer(t, make([]byte, 40<<10))
	loaders := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/loader.efi":
			_, _ = w.Write([]byte("MZ and so on"))
		case "/boot/script":
			_, _ = w.Write([]byte("#!ipxe\nexit\n"))
		default:
			_, _ = w.Write([]byte("no program"))
		}
	}))
	defer loaders.Close()
	for name, c := range map[string]struct {
		target, uri, image string
		want               string // stage of the start
	}{
		"a CD":                {target: "Cd", image: image, want: "cd: boot.iso"},
		"a CD without loader": {target: "Cd", image: plain, want: "cd: boot.iso does not boot"},
		"no CD":               {target: "Cd", want: "cd: the drive is empty"},
		"HTTP Boot":           {target: "UefiHttp", uri: loaders.URL + "/loader.efi", want: "http: " + loaders.URL + "/loader.efi"},
		"HTTP Boot of a page": {target: "UefiHttp", uri: loaders.URL + "/page", want: "http: load " + loaders.URL + "/page: not a program of UEFI"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := NewSimulated(SimulatedOptions{Name: "m", Dir: t.TempDir(), MAC: "52:54:00:00:00:01", UEFI: true,
				Disks: []inventory.DiskID{{Serial: "d", Size: 1 << 20}}, Server: loaders.Listener.Addr().String(),
				BMC: BMCRedfish, User: "admin", Password: "secret"})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if c.image != "" {
				redfishInsertStep(c.image, "", 204).run(t, s.Redfish)
			}
			uri := ""
			if c.uri != "" {
				uri = `,"HttpBootUri":"` + c.uri + `"`
			}
			patch(redfishTestSystem, `{"Boot":{"BootSourceOverrideTarget":"`+c.target+`","BootSourceOverrideEnabled":"Once","BootSourceOverrideMode":"UEFI"`+uri+`}}`, 204, "").run(t, s.Redfish)
			reset("On", 204).run(t, s.Redfish)
			await(t, "it boots", 20*time.Second, func() bool { return simHas(s.Boots()[0].Path, c.want) })
		})
	}
}
