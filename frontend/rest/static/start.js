SwaggerUIBundle({
  // Relative to the page, which may be behind a proxy with a path prefix.
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: true,
  // Nothing is sent to anybody else.
  validatorUrl: null,
});
