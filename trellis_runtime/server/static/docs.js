// The page of the API: Swagger UI, from this server alone. Its validator badge would call home.
if (window.SwaggerUIBundle) {
  window.SwaggerUIBundle({ url: "/openapi.json", dom_id: "#api", validatorUrl: null });
} else {
  document.getElementById("api").textContent =
    "Swagger UI is not installed here (make serve brings it); the description is at /openapi.json.";
}
