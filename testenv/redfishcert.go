package testenv

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"

	"recast/inventory"
)

const (
	redfishCertificateService = redfishRoot + "/CertificateService"
	redfishCertificates       = redfishManager + "/NetworkProtocol/HTTPS/Certificates"
)

// redfishCertificate is self-signed and names no host, as a BMC's factory one.
func redfishCertificate() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "virtual BMC"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(10, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// SetBoard puts another board behind the BMC.
func (b *RedfishBMC) SetBoard(board Board) error {
	b.board.Store(&board)
	return nil
}

// Pin is the SHA-256 of the certificate that it shows now.
func (b *RedfishBMC) Pin() inventory.Digest {
	return inventory.DigestOf(b.tlsCertificate().Certificate[0])
}

func (b *RedfishBMC) tlsCertificate() *tls.Certificate {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	return b.certificate
}

// SwapCertificate shows another one from the next connection on, as a BMC that
// was reset to its factory settings, or another board at its address.
func (b *RedfishBMC) SwapCertificate() error {
	certificate, err := redfishCertificate()
	if err == nil {
		b.setCertificate(certificate)
	}
	return err
}

// setCertificate ends every connection that was made under the old one.
func (b *RedfishBMC) setCertificate(certificate *tls.Certificate) {
	b.stateMu.Lock()
	b.certificate = certificate
	b.stateMu.Unlock()
	b.server.SetKeepAlivesEnabled(false)
	b.server.SetKeepAlivesEnabled(true)
}

func (b *RedfishBMC) certificateService([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		actions := map[string]any{}
		for _, name := range []string{"ReplaceCertificate", "GenerateCSR"} {
			actions["#CertificateService."+name] = map[string]any{"target": redfishCertificateService + "/Actions/CertificateService." + name}
		}
		return redfishNew(redfishCertificateService, "#CertificateService.v1_2_2.CertificateService", "CertificateService", "Certificate Service", map[string]any{
			"CertificateLocations": redfishID(redfishCertificateService + "/CertificateLocations"), "Actions": actions,
		})
	}}
}

func (b *RedfishBMC) certificateLocations([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		return redfishNew(redfishCertificateService+"/CertificateLocations", "#CertificateLocations.v1_0_4.CertificateLocations", "CertificateLocations", "Certificate Locations", map[string]any{
			"Links": map[string]any{"Certificates": []any{redfishID(redfishCertificates + "/1")}},
		})
	}}
}

func (b *RedfishBMC) certificateCollection([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		return redfishCollection(redfishCertificates, "Certificate", []string{redfishCertificates + "/1"})
	}}
}

func (b *RedfishBMC) certificateResource([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		der := b.tlsCertificate().Certificate[0]
		sum := sha256.Sum256(der)
		fields := map[string]any{
			"CertificateType":   "PEM",
			"CertificateString": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
			"Fingerprint":       redfishColons(sum[:]), "FingerprintHashAlgorithm": "TPM_ALG_SHA256",
		}
		if parsed, err := x509.ParseCertificate(der); err == nil {
			fields["Subject"] = map[string]any{"CommonName": parsed.Subject.CommonName}
			fields["Issuer"] = map[string]any{"CommonName": parsed.Issuer.CommonName}
			fields["ValidNotBefore"], fields["ValidNotAfter"] = redfishTime(parsed.NotBefore), redfishTime(parsed.NotAfter)
			fields["SerialNumber"] = redfishColons(parsed.SerialNumber.Bytes())
		}
		return redfishNew(redfishCertificates+"/1", "#Certificate.v1_11_0.Certificate", "1", "HTTPS Certificate", fields)
	}}
}

func redfishColons(raw []byte) string {
	words := make([]string, len(raw))
	for i := range raw {
		words[i] = strings.ToUpper(hex.EncodeToString(raw[i : i+1]))
	}
	return strings.Join(words, ":")
}

// replaceCertificate takes a chain in PEM: with its key, or for the key of the
// last signing request.
func (b *RedfishBMC) replaceCertificate([]string) *redfishResource {
	return &redfishResource{action: true, admin: true, post: func(c *redfishCall) {
		const action = "CertificateService.ReplaceCertificate"
		var body struct {
			CertificateString, CertificateType string
			CertificateUri                     struct {
				ID string `json:"@odata.id"`
			}
		}
		if !c.read(&body) {
			return
		}
		switch {
		case body.CertificateString == "":
			c.refuse(http.StatusBadRequest, "ActionParameterMissing", action, "CertificateString")
			return
		case body.CertificateType != "PEM" && body.CertificateType != "PEMchain":
			c.refuse(http.StatusBadRequest, "ActionParameterValueNotInList", body.CertificateType, "CertificateType", action)
			return
		case body.CertificateUri.ID != redfishCertificates+"/1":
			c.refuse(http.StatusBadRequest, "ActionParameterValueConflict", "CertificateUri", body.CertificateUri.ID)
			return
		}
		b.stateMu.Lock()
		key := b.signingKey
		b.stateMu.Unlock()
		certificate, err := redfishParseCertificate([]byte(body.CertificateString), key)
		if err != nil {
			c.refuse(http.StatusBadRequest, "ActionParameterValueConflict", "CertificateString", err.Error())
			return
		}
		b.record("set-certificate", string(inventory.DigestOf(certificate.Certificate[0])), true)
		c.w.Header().Set("Location", redfishCertificates+"/1")
		c.w.WriteHeader(http.StatusNoContent)
		b.setCertificate(certificate)
	}}
}

// redfishParseCertificate reads a chain and a key, which may be one held here.
func redfishParseCertificate(text []byte, held crypto.Signer) (*tls.Certificate, error) {
	certificate := &tls.Certificate{}
	var key crypto.PrivateKey
	if held != nil {
		key = held
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			certificate.Certificate = append(certificate.Certificate, block.Bytes)
		case "PRIVATE KEY":
			var err error
			if key, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
				return nil, errors.New("the key is not PKCS #8")
			}
		case "EC PRIVATE KEY":
			var err error
			if key, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
				return nil, errors.New("the key cannot be read")
			}
		}
	}
	if len(certificate.Certificate) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		return nil, errors.New("the certificate cannot be read")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("there is no key for it: ask for a signing request first")
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("its key is another one")
	}
	certificate.PrivateKey = signer
	return certificate, nil
}

// generateCSR makes a key, which stays here, and a request to sign for it.
func (b *RedfishBMC) generateCSR([]string) *redfishResource {
	return &redfishResource{action: true, admin: true, post: func(c *redfishCall) {
		const action = "CertificateService.GenerateCSR"
		var body struct {
			CertificateCollection *struct {
				ID string `json:"@odata.id"`
			}
			CommonName, Organization, OrganizationalUnit, City, State, Country string
			AlternativeNames                                                   []string
			KeyPairAlgorithm, KeyCurveId                                       string
			KeyBitLength                                                       int
		}
		if !c.read(&body) {
			return
		}
		if body.CertificateCollection == nil || body.CertificateCollection.ID != redfishCertificates {
			c.refuse(http.StatusBadRequest, "ActionParameterMissing", action, "CertificateCollection")
			return
		}
		if body.CommonName == "" {
			c.refuse(http.StatusBadRequest, "ActionParameterMissing", action, "CommonName")
			return
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			c.broken(err)
			return
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: body.CommonName}, DNSNames: body.AlternativeNames,
		}, key)
		if err != nil {
			c.broken(err)
			return
		}
		b.record("set-certificate", "signing request for "+body.CommonName, true)
		b.stateMu.Lock()
		b.signingKey = key
		b.stateMu.Unlock()
		c.reply(http.StatusOK, map[string]any{
			"CSRString":             string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
			"CertificateCollection": redfishID(redfishCertificates),
		})
	}}
}
